"""The log-probability pass over packed rows: one copy of a prompt, then all of its responses.

A row is [prompt, response 1, …, response n]. Every response sees the prompt and itself, and its
positions go on from the prompt's last one, so each token is computed as if the others were not
there: P + nR tokens in place of n(P + R).
"""

from __future__ import annotations

from typing import Any

import torch

import g2rpo

from .head import goes_without_logits, predictions_from_hidden
from .packing import PADDING, PROMPT, Packing, pack
from .policy_model import Policy
from .positions import accepts_positions, next_positions, prompt_positions
from .predictions import FromLogits, Predictions
from .prompts import Inputs, extend_rows


def packed_predictions(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> Predictions:
    """Return the predictions of every token, as ``completion_predictions`` does."""
    prompt_length = prompts["input_ids"].shape[1]
    packing = pack(tokens, mask, groups, len(prompts["input_ids"]))
    positions = prompt_positions(policy.model, prompts)
    behind = next_positions(prompts, positions)[:, None] + packing.offsets
    inputs: dict[str, Any] = extend_rows(prompts, packing.tokens)
    inputs["position_ids"] = torch.cat(
        [positions, behind.expand(*positions.shape[:-1], -1)], dim=-1
    )
    inputs["attention_mask"] = _attention_masks(policy.model, prompts["attention_mask"], packing)
    num_last = inputs["input_ids"].shape[1] - prompt_length + 1
    places = groups[:, None], packing.sources
    if goes_without_logits(policy, prompts, len(inputs["input_ids"]) * num_last):
        ignored = tokens.masked_fill(~mask, -100)
        return predictions_from_hidden(
            policy, inputs, num_last, places, ignored, temperature=temperature
        )
    logits = policy.model(**inputs, use_cache=False, logits_to_keep=num_last).logits
    logits = policy.masked_logits(logits, temperature)
    # Padding may be a banned token: any token with a finite logit will do in its place.
    labels = torch.where(mask, tokens, policy.eos_ids[0])
    entropies = g2rpo.entropy_from_logits(logits)
    logprobs = logits.log_softmax(-1)[*places, labels]
    return FromLogits(logprobs, entropies[places])


def packing_obstacle(model: Any) -> str | None:
    """Return why a model cannot take packed rows as far as its configuration tells, or None."""
    text = model.config.get_text_config()
    attention = text._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"attention {attention!r} takes no mask of its own; 'sdpa' and 'eager' do"
    if unknown := _layer_kinds(text) - {"full_attention", "sliding_attention"}:
        return f"the model has layers of {', '.join(sorted(unknown))}"
    if not accepts_positions(model):
        return "the model takes no position_ids"
    return None


def _layer_kinds(text: Any) -> set[str]:
    default = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    return set(getattr(text, "layer_types", None) or [default])


def _attention_masks(
    model: Any, prompt_mask: torch.Tensor, packing: Packing
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return who sees whom, (P, 1, L + W, L + W), one mask for each kind of layer if there are two.

    Bool for SDPA, to be added for eager attention.
    """
    prompt = torch.where(prompt_mask.bool(), PROMPT, PADDING)
    segments = torch.cat([prompt, packing.segments], dim=1)
    # Padding sees padding: a row of the softmax without any key would be NaN.
    allowed = (segments[:, None] == PROMPT) | (segments[:, None] == segments[:, :, None])
    masks = {"full_attention": allowed.tril()}
    text = model.config.get_text_config()
    kinds = _layer_kinds(text)
    if "sliding_attention" in kinds:
        places = torch.cat(
            [prompt_mask.cumsum(-1) - 1, prompt_mask.sum(-1, keepdim=True) + packing.offsets], dim=1
        )
        distances = places[:, :, None] - places[:, None]
        masks["sliding_attention"] = masks["full_attention"] & (distances < text.sliding_window)
    ready = {kind: _as_taken(model, masks[kind][:, None]) for kind in kinds}
    return ready if len(ready) > 1 else ready.popitem()[1]


def _as_taken(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return allowed
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(allowed, dtype=model.dtype).masked_fill(~allowed, lowest)
