"""How a policy lies in a folder: sizes and vocabulary as JSON, weights as safetensors.

A checkpoint of a run has its weights in Orbax's format instead, see
:mod:`g2rpo_jax.trainer.checkpoint`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .decoder import Decoder, DecoderConfig, Params
from .tokenizer import Tokenizer

_CONFIG, _VOCABULARY, _WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
_MODEL_TYPE = "g2rpo_jax_decoder"


def save_sizes(folder: Path, config: DecoderConfig, tokenizer: Tokenizer) -> None:
    """Write all but the weights."""
    sizes = {"model_type": _MODEL_TYPE, **asdict(config)}
    (folder / _CONFIG).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(folder / _VOCABULARY)


def read_sizes(folder: Path) -> tuple[DecoderConfig, Tokenizer]:
    """Return sizes and tokenizer.

    Raises
    ------
    OSError
        If a file is missing.
    ValueError
        If a file holds something else, or the two do not fit each other.
    """
    path = folder / _CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.pop("model_type", None) != _MODEL_TYPE:
        raise ValueError(f"{path}: model_type must be {_MODEL_TYPE!r}")
    try:
        config = DecoderConfig(**content)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
    tokenizer = Tokenizer.load(folder / _VOCABULARY)
    if len(tokenizer) != config.vocab_size:
        raise ValueError(
            f"{path}: vocab_size is {config.vocab_size}, but {_VOCABULARY} has {len(tokenizer)}"
        )
    return config, tokenizer


def save_weights(folder: Path, params: Params) -> None:
    """Write weights in half precision."""
    save_file(
        {name: np.asarray(leaf).astype(np.float16) for name, leaf in _named(params).items()},
        folder / _WEIGHTS,
    )


def read_weights(folder: Path, config: DecoderConfig) -> Params:
    """Return weights in float32.

    Raises
    ------
    OSError
        If there is no such file.
    ValueError
        If it holds something else than weights of these sizes.
    """
    path = folder / _WEIGHTS
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None
    _, wanted = abstract_decoder(config)
    shapes = {name: leaf.shape for name, leaf in _named(wanted).items()}
    if {name: leaf.shape for name, leaf in found.items()} != shapes:
        raise ValueError(f"{path}: the weights do not have the sizes that {_CONFIG} says")
    leaves = [jnp.asarray(found[name], jnp.float32) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def abstract_decoder(config: DecoderConfig) -> tuple[nnx.GraphDef[Decoder], Params]:
    """Return a decoder's definition, and shapes and dtypes in place of its weights."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))


def _named(params: Params) -> dict[str, jax.Array]:
    """Return every weight by its dotted name, in the order of the leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
