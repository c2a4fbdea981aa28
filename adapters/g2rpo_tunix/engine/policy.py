"""Policies of tunix's own classes, with a tokenizer that makes prompts of questions.

A folder is either one of the JAX trainer's, whose decoder is tunix's Qwen2 with attention biases of
0, or one in Hugging Face format of a family that tunix reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import model as qwen3

from g2rpo.run.errors import RunError
from g2rpo_jax.policy import policy_path
from g2rpo_jax.policy.decoder import DecoderConfig
from g2rpo_jax.policy.files import read_sizes, read_weights
from g2rpo_jax.policy.tokenizer import USER
from g2rpo_jax.policy.tokenizer import Tokenizer as Words

BUILTIN = "builtin"
_ROTARY_BASE = 10_000
_FAMILIES = {"qwen2": qwen2, "qwen3": qwen3}


class Tokenizer(Protocol):
    """What tunix asks of a tokenizer; ``encode`` makes a prompt of a question."""

    def encode(self, text: str, **options: Any) -> list[int]: ...  # noqa: D102
    def decode(self, ids: list[int], **options: Any) -> str: ...  # noqa: D102
    def bos_id(self) -> int | None: ...  # noqa: D102
    def eos_id(self) -> int: ...  # noqa: D102
    def pad_id(self) -> int: ...  # noqa: D102


class Policy(NamedTuple):
    """A model, and the tokenizer that speaks to it.

    Attributes
    ----------
    model : nnx.Module
    tokenizer : Tokenizer
    context : int or None
        Most tokens of prompt and response together; None if the model's positions have no end.
    """

    model: nnx.Module
    tokenizer: Tokenizer
    context: int | None = None


def load_policy(name: str, mesh: jax.sharding.Mesh, dtype: str) -> Policy:
    """Load a policy from the package or a folder.

    Parameters
    ----------
    name : str
        ``"builtin"`` for the embedded policy of text, else a folder.
    mesh : jax.sharding.Mesh
        Where it goes.
    dtype : {"float32", "bfloat16"}
        Of its weights.

    Returns
    -------
    Policy

    Raises
    ------
    RunError
        If there is no such folder, or something in it that tunix does not read.
    """
    folder = policy_path() if name == BUILTIN else Path(name)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind in _FAMILIES:
            return _from_hugging_face(folder, kind, mesh, jnp.dtype(dtype))
        return _from_words(folder, jnp.dtype(dtype))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"--model is {name!r}, which cannot be loaded; with the engine tunix it must be "
            "'builtin', a folder of the JAX trainer's cold start, or one in Hugging Face format "
            f"of {' or '.join(_FAMILIES)} ({reason})"
        ) from error


def _from_words(folder: Path, dtype: Any) -> Policy:
    config, words = read_sizes(folder)
    return Policy(as_qwen2(config, read_weights(folder, config), dtype), _Questions(words))


def as_qwen2(config: DecoderConfig, weights: Any, dtype: Any = jnp.float32) -> qwen2.Qwen2:
    """Return the JAX trainer's decoder as tunix's Qwen2, which makes the same logits.

    Parameters
    ----------
    config : DecoderConfig
        Sizes.
    weights : nnx.State
        Weights of :class:`g2rpo_jax.policy.decoder.Decoder`.
    dtype : dtype
        Of the result.
    """
    heads, width = config.heads, config.width // config.heads
    model = qwen2.Qwen2(
        qwen2.ModelConfig(
            num_layers=config.layers,
            vocab_size=config.vocab_size,
            embed_dim=config.width,
            hidden_dim=config.feed_forward,
            num_heads=heads,
            head_dim=width,
            num_kv_heads=heads,
            rope_theta=_ROTARY_BASE,
            norm_eps=1e-6,
            dtype=dtype,
            param_dtype=dtype,
        ),
        rngs=nnx.Rngs(0),
    )
    found = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }
    _put(model.embedder.input_embedding, found["embedding"])
    _put(model.lm_head.w, found["head"].T)
    _put(model.final_norm.w, found["norm.scale"])
    for number, layer in enumerate(model.layers):
        block = f"blocks.{number}."
        _put(layer.input_layernorm.w, found[block + "attention_norm.scale"])
        _put(layer.post_attention_layernorm.w, found[block + "feed_forward_norm.scale"])
        parts = found[block + "queries_keys_values.kernel"]
        parts = parts.reshape(config.width, 3, heads, width)
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            _put(getattr(layer.attn, name).w, parts[:, part])
        _put(layer.attn.o_proj.w, found[block + "out.kernel"].reshape(heads, width, config.width))
        gate, up = jnp.split(found[block + "gate_up.kernel"], 2, axis=-1)
        _put(layer.mlp.gate_proj.kernel, gate)
        _put(layer.mlp.up_proj.kernel, up)
        _put(layer.mlp.down_proj.kernel, found[block + "down.kernel"])
    return model


def _put(variable: Any, value: jax.Array) -> None:
    if variable.shape != value.shape:
        raise ValueError(f"a weight must have shape {variable.shape}, got {value.shape}")
    variable.set_value(value.astype(variable.dtype))


class _Questions:
    """The JAX trainer's tokenizer as tunix wants it."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._user = words.entries.index(USER)

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._words.encode_prompt(text)

    def decode(self, ids: list[int], **_: Any) -> str:
        return self._words.decode(ids)

    def bos_id(self) -> int:
        return self._user

    def eos_id(self) -> int:
        return self._words.eos_id

    def pad_id(self) -> int:
        return self._words.pad_id


def _from_hugging_face(folder: Path, kind: str, mesh: jax.sharding.Mesh, dtype: Any) -> Policy:
    from importlib import import_module

    family = _FAMILIES[kind]
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = found["num_attention_heads"]
    rope = found.get("rope_theta") or found.get("rope_parameters", {})["rope_theta"]
    config = family.ModelConfig(
        num_layers=found["num_hidden_layers"],
        vocab_size=found["vocab_size"],
        embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"],
        num_heads=heads,
        head_dim=found.get("head_dim") or found["hidden_size"] // heads,
        num_kv_heads=found["num_key_value_heads"],
        rope_theta=rope,
        norm_eps=found["rms_norm_eps"],
        use_tied_embedding=found.get("tie_word_embeddings", False),
        dtype=dtype,
        param_dtype=dtype,
    )
    params = import_module(f"tunix.models.{kind}.params")
    with mesh:
        model = params.create_model_from_safe_tensors(str(folder), config, mesh, dtype)
    return Policy(model, _ChatQuestions(folder), found.get("max_position_embeddings"))


class _ChatQuestions:
    """A Hugging Face tokenizer with its chat template, if it has one."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        pad, eos = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        if pad is None or eos is None or pad == eos:
            raise ValueError(
                "the tokenizer must have an end token and another one for padding, "
                f"got eos_token_id={eos}, pad_token_id={pad}"
            )

    def encode(self, text: str, **_: Any) -> list[int]:
        if not self._tokenizer.chat_template:
            return list(self._tokenizer.encode(text))
        messages = [{"role": "user", "content": text}]
        rendered = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer.encode(rendered, add_special_tokens=False))

    def decode(self, ids: list[int], **_: Any) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def bos_id(self) -> None:
        # The template, or the tokenizer, has put it there already.
        return None

    def eos_id(self) -> int:
        return int(self._tokenizer.eos_token_id)

    def pad_id(self) -> int:
        return int(self._tokenizer.pad_token_id)
