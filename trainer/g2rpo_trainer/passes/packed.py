"""The log-probability pass over packed rows: one copy of a prompt, then all of its responses.

A row is [prompt, response 1, …, response n]. Every response sees the prompt and itself, and its
positions go on from the prompt's last one, so each token is computed as if the others were not
there: P + nR tokens in place of n(P + R).
"""

from __future__ import annotations

from typing import Any

import torch

import g2rpo

from ..inputs.prompts import Inputs, extend_rows
from ..model.policy_model import Policy
from .head import goes_without_logits, predictions_from_hidden
from .masks import layer_kinds, row_masks
from .packing import pack
from .positions import accepts_positions, next_positions, prompt_positions
from .predictions import FromLogits, Predictions


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
    inputs["attention_mask"] = row_masks(policy.model, prompts, packing)
    num_last = inputs["input_ids"].shape[1] - prompt_length + 1
    places = groups[:, None], packing.sources
    if goes_without_logits(policy, prompts):
        ignored = tokens.masked_fill(~mask, -100)
        return predictions_from_hidden(
            policy, inputs, num_last, places, ignored, temperature=temperature
        )
    logits = policy.model(**inputs, use_cache=False, logits_to_keep=num_last).logits
    logits = policy.masked_logits(logits, temperature)
    # Padding may be a banned token: any token with a finite logit will do in its place.
    labels = torch.where(mask, tokens, policy.harmless_id)
    entropies = g2rpo.entropy_from_logits(logits)
    logprobs = logits.log_softmax(-1)[*places, labels]
    return FromLogits(logprobs, entropies[places])


def packing_obstacle(model: Any) -> str | None:
    """Return why a model cannot take packed rows as far as its configuration tells, or None."""
    text = model.config.get_text_config()
    attention = text._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"attention {attention!r} takes no mask of its own; 'sdpa' and 'eager' do"
    if unknown := layer_kinds(model) - {"full_attention", "sliding_attention"}:
        return f"the model has layers of {', '.join(sorted(unknown))}"
    if not accepts_positions(model):
        return "the model takes no position_ids"
    return None
