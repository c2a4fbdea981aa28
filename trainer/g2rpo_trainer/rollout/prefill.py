"""Encode each prompt once, and let all of its responses go on from there."""

from __future__ import annotations

from typing import Any

import torch

from ..inputs.prompts import Inputs
from ..model.policy_model import Policy
from ..passes.masks import cache_name, own_prompt_masks
from ..passes.positions import accepts_positions, has_image_axes, prompt_positions
from .prompt_cache import repeat_cache


@torch.no_grad()
def expanded_prompts(policy: Policy, prompts: Inputs, num_generations: int) -> dict[str, Any]:
    """Return what ``generate`` needs to sample from prompts that are encoded already.

    All but the last token of each prompt goes through the model, its image included. The last one
    is left to ``generate``, whose first step then computes N tokens and not N prompts.

    Parameters
    ----------
    policy : Policy
        Whose model is run.
    prompts : dict of str to Tensor
        P prompts of at least 2 tokens.
    num_generations : int
        Responses to each prompt.

    Returns
    -------
    dict
        ``input_ids``, ``attention_mask``, the KV cache and, for some models, ``position_ids``, of
        N = P · num_generations rows.

    Raises
    ------
    TypeError
        If the model's cache cannot be expanded, or the tokens of its prompts see the last one.
    """
    _refuse_sight_of_the_last_token(policy, prompts)
    positions = prompt_positions(policy.model, prompts)
    inputs = _without_last_token(prompts)
    if accepts_positions(policy.model):
        inputs["position_ids"] = positions[..., :-1]
    name = cache_name(policy.model.forward)
    cache = getattr(policy.model(**inputs, use_cache=True, logits_to_keep=1), name)
    repeat_cache(cache, num_generations)
    expanded = {
        name: prompts[name].repeat_interleave(num_generations, dim=0)
        for name in ("input_ids", "attention_mask")
    }
    if has_image_axes(policy.model):
        # `generate` would take them from the grid of images, which it does not see, or without
        # images from what the model remembers of the batch before.
        axes = positions.expand(3, -1, -1)
        expanded["position_ids"] = axes.repeat_interleave(num_generations, dim=1)
    return {**expanded, name: cache}


def _without_last_token(prompts: Inputs) -> Inputs:
    shape = prompts["input_ids"].shape
    return {
        name: tensor[:, :-1] if tensor.shape == shape else tensor
        for name, tensor in prompts.items()
    }


def _refuse_sight_of_the_last_token(policy: Policy, prompts: Inputs) -> None:
    is_token = prompts["attention_mask"][:, :-1].bool()
    for mask in own_prompt_masks(policy.model, prompts).values():
        if mask[:, :-1, -1][is_token].any():
            raise TypeError("the tokens of a prompt see its last one, which is left to `generate`")
