"""Encode each prompt once, and let all of its responses go on from its keys and values."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .model.policy_model import Policy
from .packing import (
    accepts_positions,
    cache_name,
    has_image_axes,
    own_prompt_masks,
    prompt_positions,
)
from .prompts.batching import Inputs

# Tokens that a layer has room for before it is copied. Without room every token copies all before
# it, which is a third of the time of a rollout of 16 tokens on a prompt of 1,024.
_ROOM = 64


@torch.no_grad()
def expanded_prompts(policy: Policy, prompts: Inputs, num_generations: int) -> dict[str, Any]:
    """Prefill each prompt once, and return the inputs of ``generate`` for its responses.

    All but the last token of each prompt go through the model, with its images. The last token is
    left to ``generate``, so that its first step computes N tokens and not N prompts.

    Parameters
    ----------
    policy : Policy
        Its model is run.
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
        If the model's cache cannot be repeated, or the tokens of a prompt attend to the last one.
    """
    cache, positions = prefill(policy, prompts)
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
    return {**expanded, cache_name(policy.model.forward): cache}


@torch.no_grad()
def prefill(policy: Policy, prompts: Inputs) -> tuple[Any, torch.Tensor]:
    """Run all but the last token of each prompt through the model, with its images.

    Returns
    -------
    cache : transformers.Cache
        Their keys and values.
    positions : Tensor (P, L) or (3, P, L), int64
        Positions of all tokens.

    Raises
    ------
    TypeError
        If the tokens of a prompt attend to the last one.
    """
    _refuse_sight_of_the_last_token(policy, prompts)
    positions = prompt_positions(policy.model, prompts)
    inputs = _without_last_token(prompts)
    if accepts_positions(policy.model):
        inputs["position_ids"] = positions[..., :-1]
    name = cache_name(policy.model.forward)
    return getattr(policy.model(**inputs, use_cache=True, logits_to_keep=1), name), positions


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


def repeat_cache(cache: Any, repeats: int) -> None:
    """Repeat each row of a cache in place, with room for the tokens to come.

    Parameters
    ----------
    cache : transformers.Cache
        Keys and values of P prompts.
    repeats : int
        Responses to each prompt.

    Raises
    ------
    TypeError
        If the cache holds anything but keys and values of all tokens or of a window of them.
    """
    require_keys_and_values(cache)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length():
            cache.layers[number] = _RoomyLayer(layer, repeats)
        else:
            layer.batch_repeat_interleave(repeats)


def require_keys_and_values(cache: Any) -> None:
    """Raise `TypeError` if a cache holds anything but keys and values of tokens."""
    # Recurrent states and fixed buffers look like caches, but cannot be repeated or continued the
    # same way.
    kinds = {type(layer) for layer in cache.layers} if isinstance(cache, DynamicCache) else set()
    if not kinds or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds or {type(cache)}))
        raise TypeError(f"the model's cache is a {names}, which cannot be expanded")


class _RoomyLayer(DynamicLayer):
    """Keys and values (N, heads, tokens, width) at the front of longer tensors."""

    def __init__(self, layer: Any, repeats: int) -> None:
        super().__init__()
        # Some versions of transformers keep more in a layer than others.
        vars(self).update(vars(layer))
        self._wide = tuple(_wide(x, repeats, _ROOM) for x in (layer.keys, layer.values))
        self._show(layer.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the states of the next tokens; return those of all."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._wide[0].shape[-2]:
            self._wide = tuple(_wide(x[:, :, :start], 1, end - start + _ROOM) for x in self._wide)
        for wide, states in zip(self._wide, (key_states, value_states), strict=True):
            wide[:, :, start:end] = states
        return self._show(end)

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (wide[:, :, :length] for wide in self._wide)
        self.keys, self.values = keys, values
        return keys, values


def _wide(states: torch.Tensor, repeats: int, room: int) -> torch.Tensor:
    """Copy states to the front of a longer tensor, each row ``repeats`` times."""
    rows, heads, length, width = states.shape
    # Zeros, since what is masked may be multiplied, too.
    wide = states.new_zeros(rows, repeats, heads, length + room, width)
    wide[:, :, :, :length] = states[:, None]
    return wide.flatten(0, 1)
