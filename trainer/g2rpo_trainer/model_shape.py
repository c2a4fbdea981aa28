"""Sizes of a model that its memory and time follow from, counted without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .block_attention import config_obstacle
from .model.adapting import vision_tower


class WeightBytes(NamedTuple):
    """Bytes that training takes for each trained weight of 16 bits, beside itself.

    Attributes
    ----------
    gradient : int
    state : int
        Float32 master and two moments.
    step : int
        Bytes that AdamW holds while it steps, beside the temporary tensors of a bucket on a CPU.
    """

    gradient: int
    state: int
    step: int


ADAMW = WeightBytes(gradient=4, state=12, step=0)
"""Bytes of :class:`g2rpo_trainer.optimizer.MasterAdamW`: 18 with the weight itself.

Gradients are float32, and the fused kernel of a GPU has no temporary tensors. A float32 weight
needs no master.
"""


@dataclass(frozen=True)
class Stack:
    """Equal transformer layers, those of the language model or of the vision tower.

    Attributes
    ----------
    layers : int
    hidden : int
        Width of the residual stream.
    inner : int
        Width of the MLP that a token passes, of all its experts together.
    gated : bool
        Whether the MLP multiplies two such activations.
    heads, kv_heads, head_width : int
        Attention heads, those of keys and values, and their width.
    normed : int
        Entries that the norms of a layer take for a token.
    weights : int
        Weights that a token passes.
    is_trained : bool
        Whether they take gradients; beside adapters they do not.
    """

    layers: int
    hidden: int
    inner: int
    gated: bool
    normed: int
    heads: int
    kv_heads: int
    head_width: int
    weights: int
    is_trained: bool

    def layer_bytes(self, item: int, row: int = 0, *, is_eager: bool = False) -> float:
        """Return the bytes that one layer keeps for a token of a row of so many tokens.

        A norm keeps a float32 input, its output and, to train its weight, the normalised value;
        attention its queries, repeated keys and values, and its output twice; a gated MLP four
        activations of its inner width, another one three.
        """
        attention = 5 * item * self.heads * self.head_width
        if is_eager:
            attention += self.heads * row * (4 + (item if item < 4 else 0))
        mlp = item * (4 if self.gated else 3) * self.inner
        norms = (4 + (2 if self.is_trained else 1) * item) * self.normed
        return norms + attention + mlp


@dataclass(frozen=True)
class KVCache:
    """Keys and values that layers keep of a row.

    Attributes
    ----------
    windows : tuple of int or None
        Sliding window of each layer that has keys and values; None for all tokens.
    token_bytes : int
        Bytes of a token in one layer.
    """

    windows: tuple[int | None, ...]
    token_bytes: int

    def bytes(self, rows: int, tokens: int) -> int:
        """Return the bytes of so many rows of so many tokens."""
        # A sliding window holds what the next token sees, which is one less than itself.
        kept = sum(tokens if window is None else min(tokens, window - 1) for window in self.windows)
        return kept * rows * self.token_bytes


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, of what is trained of it, and of its parts.

    Attributes
    ----------
    item : int
        Bytes of a number of the model's dtype.
    parameters, weight_bytes : int
        All weights, each once.
    trained : int
        Weights that take gradients.
    narrow : int
        Trained ones of 16 bits, which have a float32 master.
    unit_bytes : int
        Weights of the largest decoder layer.
    root_bytes, root_trained : int
        Weights outside of the decoder layers, in bytes, and how many of them are trained.
    text : Stack
    vision : Stack or None
        Vision tower, if there is one.
    is_vision_trained, is_head_trained, is_eager : bool
        Whether the tower and the output layer take gradients, and whether attention stores its
        probabilities.
    vocabulary : int
    context : int or None
        Longest row [tokens].
    cache : KVCache
    can_checkpoint : bool
        Whether its layers can be computed twice in the update.
    takes_blocks : bool
        Whether packed rows may skip pairs that no token sees
        (:mod:`g2rpo_trainer.block_attention`).
    """

    item: int
    parameters: int
    weight_bytes: int
    trained: int
    narrow: int
    unit_bytes: int
    root_bytes: int
    root_trained: int
    text: Stack
    vision: Stack | None
    is_vision_trained: bool
    is_head_trained: bool
    is_eager: bool
    vocabulary: int
    context: int | None
    cache: KVCache
    can_checkpoint: bool
    takes_blocks: bool

    @property
    def optimizer_bytes(self) -> int:
        """Masters of 16-bit weights, and two moments of all that are trained."""
        return ADAMW.state * self.narrow + 8 * (self.trained - self.narrow)

    @property
    def gradient_bytes(self) -> int:
        """Float32 gradients."""
        return ADAMW.gradient * self.trained


def model_shape(model: Any) -> ModelShape:
    """Return the sizes of a model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With its adapter, and with what is frozen frozen. It may be on the meta device.

    Examples
    --------
    >>> from transformers import AutoModelForCausalLM, Qwen3Config
    >>> config = Qwen3Config(vocab_size=512, hidden_size=64, num_hidden_layers=2)
    >>> with torch.device("meta"):
    ...     shape = model_shape(AutoModelForCausalLM.from_config(config))
    >>> shape.text.layers, shape.vocabulary, shape.vision
    (2, 512, None)
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    layers = _decoder_layers(model)
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    root = [weight for weight in weights if id(weight) not in inside]
    tower = vision_tower(model)
    head = model.get_output_embeddings()
    text = model.config.get_text_config()
    return ModelShape(
        item=model.dtype.itemsize,
        parameters=sum(weight.numel() for weight in weights),
        weight_bytes=_bytes(weights),
        trained=sum(weight.numel() for weight in trained),
        narrow=sum(weight.numel() for weight in trained if weight.itemsize < 4),
        unit_bytes=max((_bytes(layer.parameters()) for layer in layers), default=0),
        root_bytes=_bytes(root),
        root_trained=sum(weight.numel() for weight in root if weight.requires_grad),
        text=_stack(text, layers, _width(text, "num_hidden_layers")),
        vision=None if tower is None else _vision_stack(model.config, tower),
        is_vision_trained=tower is not None and _is_trained(tower),
        is_head_trained=head is not None and _is_trained(head),
        is_eager=text._attn_implementation == "eager",
        vocabulary=text.vocab_size,
        context=_width(text, "max_position_embeddings") or None,
        cache=kv_cache(model),
        can_checkpoint=model.supports_gradient_checkpointing,
        takes_blocks=config_obstacle(model) is None,
    )


def kv_cache(model: Any) -> KVCache:
    """Return the sizes of a model's keys and values."""
    text = model.config.get_text_config()
    _, kv_heads, head_width = _heads(text)
    return KVCache(tuple(_windows(text)), 2 * kv_heads * head_width * model.dtype.itemsize)


def wants_checkpointing(shape: ModelShape, tokens: int, free: int | None, ranks: int = 1) -> bool:
    """Tell whether the activations of an update need more than half of a GPU's free memory.

    Activations of the language model are counted, without the scores of attention.

    Parameters
    ----------
    shape : ModelShape
        Sizes of the model.
    tokens : int
        Tokens of a pass.
    free : int or None
        Free bytes of the GPU with the model on it; None on other devices, where nothing is
        checkpointed.
    ranks : int
        Number of ranks that divide the model.
    """
    if free is None or not shape.can_checkpoint:
        return False
    stack = shape.text
    activations = tokens * stack.layers * stack.layer_bytes(shape.item)
    state = (shape.optimizer_bytes + shape.gradient_bytes) // ranks
    return activations > (free - state) / 2


def _bytes(weights: Any) -> int:
    return sum(weight.numel() * weight.itemsize for weight in weights)


def _is_trained(module: Any) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


def _decoder_layers(model: Any) -> list[Any]:
    """Return the layers of the language model: the longest list of modules in its decoder."""
    decoder = model.get_decoder()
    lists = [part for part in decoder.modules() if isinstance(part, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _stack(config: Any, layers: list[Any], count: int) -> Stack:
    hidden = _width(config, "hidden_size", "embed_dim")
    heads, kv_heads, head_width = _heads(config)
    experts = _width(config, "num_experts_per_tok", default=0)
    inner = _width(config, "intermediate_size", default=4 * hidden)
    if experts:
        inner = experts * _width(config, "moe_intermediate_size", default=inner)
    return Stack(
        layers=count,
        hidden=hidden,
        inner=inner,
        gated=any("gate" in name for layer in layers for name, _ in layer.named_parameters()),
        normed=sum(
            _normed(layer, hidden, heads * head_width, kv_heads * head_width, head_width)
            for layer in layers
        )
        // max(1, count),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        weights=round(sum(_used(config, layer) for layer in layers)),
        is_trained=all(weight.requires_grad for layer in layers for weight in layer.parameters()),
    )


def _heads(config: Any) -> tuple[int, int, int]:
    """Return the numbers of heads of queries and of keys and values, and their width."""
    heads = _width(config, "num_attention_heads", "num_heads", default=1)
    hidden = _width(config, "hidden_size", "embed_dim")
    head_width = _width(config, "head_dim", default=hidden // heads)
    return heads, _width(config, "num_key_value_heads", default=heads), head_width


def _normed(layer: Any, hidden: int, heads: int, kv_heads: int, head_width: int) -> int:
    """Return how many entries the norms of a layer take: of the stream, of queries or keys."""
    total = 0
    for name, weight in layer.named_parameters():
        if name.endswith("weight") and weight.ndim == 1:
            # A norm of single heads takes all of them.
            whole = heads if ".q_" in name else kv_heads
            total += {hidden: hidden, head_width: whole}.get(weight.numel(), 0)
    return total


def _used(config: Any, layer: Any) -> float:
    """Return how many weights of a layer a token passes: of experts only the chosen ones."""
    chosen = _width(config, "num_experts_per_tok", default=1)
    experts = _width(config, "num_experts", "num_local_experts", "n_routed_experts", default=1)
    share = min(1.0, chosen / experts)
    return sum(
        weight.numel() * (share if ".experts." in f".{name}" else 1.0)
        for name, weight in layer.named_parameters()
    )


def _vision_stack(config: Any, tower: Any) -> Stack:
    own = getattr(config, "vision_config", config)
    count = _width(own, "depth", "num_hidden_layers")
    hidden = _width(own, "hidden_size", "embed_dim")
    # Qwen2-VL calls the width of the language model `hidden_size`.
    return _stack(own, [tower], count) if hidden else _stack(config, [tower], count)


def _windows(text: Any) -> Iterator[int | None]:
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    for kind in kinds or ["sliding_attention" if window else "full_attention"] * _width(
        text, "num_hidden_layers"
    ):
        # Other layers, such as recurrent ones, have no keys and values.
        if kind in ("full_attention", "sliding_attention"):
            yield window if kind == "sliding_attention" else None


def _width(config: Any, *names: str, default: int = 0) -> int:
    """Return the first of several attributes of a configuration that is a number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), default)
