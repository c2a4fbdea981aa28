"""How a decoder reads prompts, and the states from which it predicts their responses.

Sampling and training take these same steps, so that both see the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from .decoder import Decoder, KeysValues, Past


class Prompts(NamedTuple):
    """P prompts of at most L tokens.

    Attributes
    ----------
    tokens : Array (P, L), int32
        Padded on the left.
    mask : Array (P, L), bool
        False at padding.
    """

    tokens: Array
    mask: Array


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, length: int) -> Prompts:
    """Return prompts of one length.

    Examples
    --------
    >>> pad_left([[7], [8, 9]], pad_id=0, length=3).tokens.tolist()
    [[0, 0, 7], [0, 8, 9]]
    """
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


def read_prompts(model: Decoder, prompts: Prompts) -> tuple[Array, Past]:
    """Return the state at each prompt's last token, (P, H), and what responses may look at."""
    tokens, mask = prompts
    length = tokens.shape[1]
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    visible = causal(length)[None, None] & mask[:, None, None]
    states, layers = model(tokens[:, None], positions[:, None], visible)
    of_prompts = tuple(KeysValues(*(part[:, 0] for part in layer)) for layer in layers)
    return states[:, 0, -1], Past(of_prompts, mask)


def next_token_states(model: Decoder, prompts: Prompts, tokens: Array) -> Array:
    """Return the states (P, G, T, H) from which each token (P, G, T) of responses is predicted."""
    last, past = read_prompts(model, prompts)
    prompt_count, group, length = tokens.shape
    places = jnp.arange(length, dtype=jnp.int32)[None, None]
    positions = jnp.broadcast_to(first_position(prompts)[:, None, None] + places, tokens.shape)
    states, _ = model(tokens, positions, causal(length)[None, None], past)
    before = jnp.broadcast_to(last[:, None, None], (prompt_count, group, 1, last.shape[-1]))
    return jnp.concatenate([before, states[:, :, :-1]], axis=2)


def first_position(prompts: Prompts) -> Array:
    """Return the position (P,) of the first token of each response."""
    return jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)


def causal(length: int) -> Array:
    """Return which of its tokens each token of a text sees, (T, T): itself and those before."""
    return jnp.tril(jnp.ones((length, length), bool))
