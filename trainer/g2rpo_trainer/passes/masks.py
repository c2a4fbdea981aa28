"""Who sees whom: the tokens of prompts, and of the responses in a packed row behind them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..inputs.prompts import Inputs
from .packing import PADDING, PROMPT, Packing
from .positions import prompt_positions


def layer_kinds(model: Any) -> set[str]:
    """Return the kinds of attention of a model's layers, such as "full_attention"."""
    text = model.config.get_text_config()
    default = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    return set(getattr(text, "layer_types", None) or [default])


def cache_name(function: Callable[..., Any]) -> str:
    """Return the name of the KV cache among a function's parameters, new from transformers 5.24."""
    return "cache" if "cache" in inspect.signature(function).parameters else "past_key_values"


def own_prompt_masks(model: Any, prompts: Inputs) -> dict[str, torch.Tensor]:
    """Return who sees whom in prompts whose tokens see more than what stands before them.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Which is asked itself.
    prompts : dict of str to Tensor
        P prompts of L tokens. Where ``token_type_ids`` are among them, they say who sees each other
        both ways: the tokens of an image in Gemma 3, the whole prefix in PaliGemma.

    Returns
    -------
    dict of str to Tensor
        (P, L, L) bool for each kind of layers, meaningless for padding; empty where every token
        sees what stands before it and nothing else.
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
    # None stands for the usual one.
    return {kind: _as_bool(own[kind])[:, 0] for kind in layer_kinds(model) if own[kind] is not None}


def row_masks(
    model: Any, prompts: Inputs, packing: Packing
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return who sees whom in rows of a prompt and its responses, as the model takes it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of layers with full attention or sliding windows, by SDPA or eager attention.
    prompts : dict of str to Tensor
        P prompts of L tokens.
    packing : Packing
        The responses behind them, W tokens.

    Returns
    -------
    Tensor or dict of str to Tensor
        (P, 1, L + W, L + W), one for each kind of layers if there are two. Bool for SDPA, to be
        added for eager attention.
    """
    prompt_mask = prompts["attention_mask"]
    prompt = torch.where(prompt_mask.bool(), PROMPT, PADDING)
    segments = torch.cat([prompt, packing.segments], dim=1)
    # Padding sees padding: a row of the softmax without any key would be NaN.
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
    ready = {kind: _as_taken(model, mask[:, None]) for kind, mask in masks.items()}
    return ready if len(ready) > 1 else ready.popitem()[1]


def as_response_types(model: Any, inputs: Inputs, prompt_length: int) -> Inputs:
    """Return inputs whose tokens behind the prompt see only what stands before them.

    For PaliGemma a token of type 0, which is text elsewhere, belongs to the prefix, and all of the
    prefix sees all of it: responses are of type 1.
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


def _as_taken(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return allowed
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(allowed, dtype=model.dtype).masked_fill(~allowed, lowest)
