"""Where the tokens of prompts and responses stand, as a model's rotary embedding counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..inputs.prompts import Inputs


def prompt_positions(model: Any, prompts: Inputs) -> torch.Tensor:
    """Return the position of every prompt token.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Whose way of counting it is.
    prompts : dict of str to Tensor
        P prompts of L tokens, padded on the left.

    Returns
    -------
    Tensor (P, L) or (3, P, L), int64
        Tokens from 0, padding not counted; time, height and width apart where the model turns the
        tokens of an image or a video by their place in it (the multimodal rotary embedding of
        Qwen-VL).
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
    """Tell whether a model counts these prompts' tokens by their places in images or videos."""
    return _has_grids(prompts) and has_image_axes(model)


def has_image_axes(model: Any) -> bool:
    """Tell whether a model turns tokens by time, height and width apart, as Qwen-VL does."""
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
    # Behind an image text goes on from the largest of the three coordinates.
    return (last if last.ndim == 1 else last.amax(0)) + 1


def accepts_positions(model: Any) -> bool:
    """Tell whether a model lets its caller say where tokens stand."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _has_grids(prompts: Inputs) -> bool:
    return "image_grid_thw" in prompts or "video_grid_thw" in prompts


def _rope_index(model: Any) -> Callable[..., Any] | None:
    # Where it sits differs from model to model.
    owners = (module for module in model.modules() if hasattr(module, "get_rope_index"))
    owner = next(owners, None)
    return owner.get_rope_index if owner is not None else None
