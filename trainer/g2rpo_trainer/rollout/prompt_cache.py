"""A prompt's cache of keys and values, repeated for its responses, with room for their tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

# Tokens that a layer has room for before it moves. Without room every token copies all before it,
# which is a third of the time of a rollout of 16 tokens on a prompt of 1,024.
_ROOM = 64


def repeat_cache(cache: Any, repeats: int) -> None:
    """Repeat each row of a cache in place, with room for the tokens to come.

    Parameters
    ----------
    cache : transformers.Cache
        Of P prompts.
    repeats : int
        Responses to each prompt.

    Raises
    ------
    TypeError
        If the cache is of another kind than keys and values of all tokens, or of a window of them.
    """
    # Recurrent states and fixed buffers look like caches, but cannot be repeated or continued the
    # same way.
    kinds = {type(layer) for layer in cache.layers} if isinstance(cache, DynamicCache) else set()
    if not kinds or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds or {type(cache)}))
        raise TypeError(f"the model's cache is a {names}, which cannot be expanded")
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length():
            cache.layers[number] = _RoomyLayer(layer, repeats)
        else:
            layer.batch_repeat_interleave(repeats)


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
    """Copy states to the front of a longer tensor, each row so many times."""
    rows, heads, length, width = states.shape
    # Zeros, since what is masked may be multiplied, too.
    wide = states.new_zeros(rows, repeats, heads, length + room, width)
    wide[:, :, :, :length] = states[:, None]
    return wide.flatten(0, 1)
