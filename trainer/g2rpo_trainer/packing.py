"""Packed rows: one prompt followed by several of its responses, with masks and positions.

A row is [prompt, response 1, …, response n]. Every response sees the prompt and itself, and its
positions continue from the prompt's last one, so each token is computed as if the other responses
were not there: P + nR tokens in place of n(P + R). ``row_cost.py``
says how many share a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from .block_attention import NAME, block_mask
from .prompts.batching import Inputs

PROMPT, PADDING = 0, -1
"""Segment numbers of tokens outside of the responses, which are numbered from 1."""


def split_groups(groups: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split groups into rows of at most ``size`` responses.

    Parameters
    ----------
    groups : Tensor (N,), int64
        Prompt of each response.
    size : int
        Largest number of responses in a row.

    Returns
    -------
    rows : Tensor (N,), int64
        Row of each response.
    prompts : Tensor (P,), int64
        Prompt of each row.

    Examples
    --------
    >>> split_groups(torch.tensor([0, 0, 0, 2]), 2)
    (tensor([0, 0, 1, 2]), tensor([0, 0, 2]))
    """
    parts = groups * len(groups) + _is_earlier(groups).sum(-1) // size
    kept, rows = parts.unique(return_inverse=True)
    return rows, kept // len(groups)


class Packing(NamedTuple):
    """N responses in the rows of their P prompts, behind the prompt.

    Attributes
    ----------
    tokens : Tensor (P, W), int64
        The concatenated responses without their last tokens, which predict nothing.
    segments : Tensor (P, W), int64
        Number of the response from 1, -1 at padding.
    offsets : Tensor (P, W), int64
        Index of the token in its response, from 0.
    sources : Tensor (N, T), int64
        Column that predicts each token: 0 is the prompt's last token, 1 the first of W.
    """

    tokens: torch.Tensor
    segments: torch.Tensor
    offsets: torch.Tensor
    sources: torch.Tensor


def pack(tokens: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor, prompts: int) -> Packing:
    """Put the responses of each group into one row.

    Parameters
    ----------
    tokens, mask : Tensor (N, T)
        Responses padded on the right, and True at their tokens.
    groups : Tensor (N,), int64
        Row of each response's prompt, in any order.
    prompts : int
        Number of rows.

    Returns
    -------
    Packing
        As wide as the longest row.

    Examples
    --------
    >>> tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    >>> packing = pack(tokens, tokens > 0, torch.tensor([0, 0]), 1)
    >>> packing.tokens, packing.segments
    (tensor([[5, 6, 8]]), tensor([[1, 1, 2]]))
    >>> packing.sources
    tensor([[0, 1, 2],
            [0, 3, 3]])
    """
    lengths = (mask.sum(-1) - 1).clamp(min=0)
    is_earlier = _is_earlier(groups)
    starts = (is_earlier * lengths).sum(-1)
    width = int((starts + lengths).max()) if len(groups) else 0
    offsets = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    is_packed = offsets < lengths[:, None]
    places = (
        groups[:, None].expand_as(tokens)[is_packed],
        (starts[:, None] + offsets)[is_packed],
    )
    values = (tokens, is_earlier.sum(-1, keepdim=True) + 1, offsets)
    packed = [
        tokens.new_full((prompts, width), fill).index_put(
            places, value.expand_as(tokens)[is_packed]
        )
        for value, fill in zip(values, (0, PADDING, 0), strict=True)
    ]
    sources = torch.where(offsets == 0, 0, starts[:, None] + offsets).clamp(max=width)
    return Packing(packed[0], packed[1], packed[2], sources)


def with_padding(packing: Packing, columns: int) -> Packing:
    """Return the rows with more columns of padding at their ends."""
    return packing._replace(
        tokens=pad(packing.tokens, (0, columns)),
        segments=pad(packing.segments, (0, columns), value=PADDING),
        offsets=pad(packing.offsets, (0, columns)),
    )


def _is_earlier(groups: torch.Tensor) -> torch.Tensor:
    """Return where response j stands before response i of the same group, (N, N) bool."""
    return (groups[:, None] == groups).tril(-1)


def layer_kinds(model: Any) -> set[str]:
    """Return the kinds of attention of a model's layers, such as "full_attention"."""
    text = model.config.get_text_config()
    default = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    return set(getattr(text, "layer_types", None) or [default])


def cache_name(function: Callable[..., Any]) -> str:
    """Return the name of the KV cache among a function's parameters, new from transformers 5.24."""
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def own_prompt_masks(model: Any, prompts: Inputs) -> dict[str, torch.Tensor]:
    """Return the attention masks of prompts whose attention is not purely causal.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model that makes the masks.
    prompts : dict of str to Tensor
        P prompts of L tokens. ``token_type_ids``, where present, mark tokens with bidirectional
        attention: those of an image in Gemma 3, the whole prefix in PaliGemma.

    Returns
    -------
    dict of str to Tensor
        (P, L, L) bool for each kind of layers, undefined at padding; empty where attention is
        causal.
    """
    if "token_type_ids" not in prompts or not hasattr(model, "create_masks_for_generate"):
        return {}
    ids = prompts["input_ids"]
    make_masks = model.create_masks_for_generate
    own = make_masks(
        config=model.config,
        inputs_embeds=torch.empty((*ids.shape, 0), dtype=model.dtype, device=ids.device),
        attention_mask=prompts["attention_mask"],
        **{cache_name(make_masks): None},
        position_ids=prompt_positions(model, prompts),
        token_type_ids=prompts["token_type_ids"],
        is_first_iteration=True,
    )
    if not isinstance(own, dict):
        own = dict.fromkeys(layer_kinds(model), own)
    # None stands for the causal mask.
    return {kind: _as_bool(own[kind])[:, 0] for kind in layer_kinds(model) if own[kind] is not None}


def row_masks(model: Any, prompts: Inputs, packing: Packing, *, in_blocks: bool = False) -> Any:
    """Return the attention masks of packed rows in the model's format.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model with full or sliding-window attention, by SDPA or eager attention.
    prompts : dict of str to Tensor
        P prompts of L tokens.
    packing : Packing
        The responses behind them, W tokens.
    in_blocks : bool
        Return block masks, for which L + W must be a multiple of
        :data:`~g2rpo_trainer.block_attention.BLOCK`.

    Returns
    -------
    Tensor or BlockMask, or dict of str to one of them
        (P, 1, L + W, L + W), one for each kind of layers if there are two. Bool for SDPA, additive
        for eager attention.
    """
    prompt_mask = prompts["attention_mask"]
    prompt = torch.where(prompt_mask.bool(), PROMPT, PADDING)
    segments = torch.cat([prompt, packing.segments], dim=1)
    # Padding attends to padding: a softmax over no keys would be NaN.
    allowed = (segments[:, None] == PROMPT) | (segments[:, None] == segments[:, :, None])
    masks = {kind: allowed.tril() for kind in layer_kinds(model)}
    if "sliding_attention" in masks:
        behind = prompt_mask.sum(-1, keepdim=True) + packing.offsets
        places = torch.cat([prompt_mask.cumsum(-1) - 1, behind], dim=1)
        masks["sliding_attention"] &= _in_window(model, places, places)
    length = prompt.shape[1]
    is_token = prompt_mask.bool()[:, :, None]
    for kind, own in own_prompt_masks(model, prompts).items():
        corner = masks[kind][:, :length, :length]
        corner.copy_(torch.where(is_token, own, corner))
    wide = {kind: mask[:, None] for kind, mask in masks.items()}
    if in_blocks:
        return _by_kind({kind: block_mask(mask) for kind, mask in wide.items()})
    return in_format(model, wide)


def as_response_types(model: Any, inputs: Inputs, prompt_length: int) -> Inputs:
    """Return inputs with causal attention behind the prompt.

    In PaliGemma tokens of type 0 are the prefix, which has bidirectional attention, so responses
    get type 1.
    """
    if model.config.model_type != "paligemma" or "token_type_ids" not in inputs:
        return inputs
    types = inputs["token_type_ids"].clone()
    types[:, prompt_length:] = 1
    return {**inputs, "token_type_ids": types}


def _in_window(model: Any, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    window: int = model.config.get_text_config().sliding_window
    return queries[:, :, None] - keys[:, None] < window


def _as_bool(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def in_format(model: Any, masks: dict[str, torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return attention masks, bool (…, queries, keys) by the kind of layers, as a model takes them.

    One mask if the model has a single kind. Bool for SDPA, additive for eager attention.
    """
    ready: torch.Tensor | dict[str, torch.Tensor] = _by_kind(
        {kind: _of_attention(model, mask) for kind, mask in masks.items()}
    )
    return ready


def _by_kind(masks: dict[str, Any]) -> Any:
    return masks if len(masks) > 1 else masks.popitem()[1]


def _of_attention(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    if model.config.get_text_config()._attn_implementation in ("sdpa", NAME):
        return allowed
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(allowed, dtype=model.dtype).masked_fill(~allowed, lowest)


def prompt_positions(model: Any, prompts: Inputs) -> torch.Tensor:
    """Return the position of every prompt token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Model that defines the positions.
    prompts : dict of str to Tensor
        P prompts of L tokens, padded on the left.

    Returns
    -------
    Tensor (P, L) or (3, P, L), int64
        From 0, padding not counted. Three coordinates (time, height, width) for images and videos
        in models with a multimodal rotary embedding (Qwen-VL).
    """
    rope_index = _rope_index(model)
    if rope_index is None or not _has_grids(prompts):
        return text_positions(prompts["attention_mask"])
    accepted = inspect.signature(rope_index).parameters
    known = {name: tensor for name, tensor in prompts.items() if name in accepted}
    positions: torch.Tensor = rope_index(**known)[0]
    return positions


def text_positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the positions (P, L) of tokens without images, from an attention mask (P, L)."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def has_image_positions(model: Any, prompts: Inputs) -> bool:
    """Tell whether these prompts have images or videos with three-dimensional positions."""
    return _has_grids(prompts) and has_image_axes(model)


def has_image_axes(model: Any) -> bool:
    """Tell whether a model has a multimodal rotary embedding (time, height, width), as Qwen-VL."""
    return _rope_index(model) is not None


def next_positions(prompts: Inputs, positions: torch.Tensor) -> torch.Tensor:
    """Return the position of the first token behind each of P prompts, (P,) int64.

    Parameters
    ----------
    prompts : dict of str to Tensor
        P prompts of L tokens.
    positions : Tensor (P, L) or (3, P, L), int64
        From :func:`prompt_positions`.
    """
    last = positions.masked_fill(prompts["attention_mask"] == 0, -1).amax(-1)
    # Text behind an image continues from the largest of the three coordinates.
    return (last if last.ndim == 1 else last.amax(0)) + 1


def accepts_positions(model: Any) -> bool:
    """Tell whether a model takes ``position_ids``."""
    return "position_ids" in inspect.signature(model.forward).parameters


def packing_obstacle(model: Any) -> str | None:
    """Return why a model cannot take packed rows as far as its configuration tells, or None."""
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager", NAME):
        return f"attention {attention!r} takes no mask of its own; 'sdpa' and 'eager' do"
    if unknown := layer_kinds(model) - {"full_attention", "sliding_attention"}:
        return f"the model has layers of {', '.join(sorted(unknown))}"
    if not accepts_positions(model):
        return "the model takes no position_ids"
    return None


def _has_grids(prompts: Inputs) -> bool:
    return "image_grid_thw" in prompts or "video_grid_thw" in prompts


def _rope_index(model: Any) -> Callable[..., Any] | None:
    # The submodule that has it differs from model to model.
    owners = (module for module in model.modules() if hasattr(module, "get_rope_index"))
    owner = next(owners, None)
    return owner.get_rope_index if owner is not None else None
