"""A small decoder: RMSNorm, rotary positions, causal attention, gated feed-forward, in Flax NNX.

It reads P prompts once, and then G responses to each of them. Arrays of responses therefore have
the shape (P, G, T, ...), and what a prompt leaves behind for its responses to look at has (P, L,
...): no copy of it is made for each response. A prompt itself is read as a group of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Params: TypeAlias = nnx.State[Any, Any]
"""The weights of a decoder: a pytree of arrays."""

# Finite, so that a query that may look at nothing (padding) gives a number and not NaN.
_UNSEEN = -1e30
_ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder; ``width`` is divided among the heads."""

    vocab_size: int
    width: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256


class KeysValues(NamedTuple):
    """What one layer lets later tokens look at, (..., S, heads, head width) each."""

    keys: Array
    values: Array


class Past(NamedTuple):
    """What P prompts leave behind for their responses.

    Attributes
    ----------
    layers : tuple of KeysValues
        (P, L, heads, head width) each.
    mask : Array (P, L), bool
        False at padding.
    """

    layers: tuple[KeysValues, ...]
    mask: Array


class Cache(NamedTuple):
    """Room for the tokens of responses that are written one at a time.

    Attributes
    ----------
    layers : tuple of KeysValues
        (P, G, T, heads, head width) each.
    place : Array (), int32
        Where the next token goes.
    """

    layers: tuple[KeysValues, ...]
    place: Array


class Decoder(nnx.Module):
    """Tokens to hidden states; ``head`` (V, H) makes logits of them.

    Parameters
    ----------
    config : DecoderConfig
        Sizes.
    rngs : nnx.Rngs
        Of the initial weights.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = nnx.Param(_normal(rngs, (config.vocab_size, config.width)))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.head = nnx.Param(_normal(rngs, (config.vocab_size, config.width)))

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        visible: Array,
        past: Past | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, tuple[KeysValues, ...]]:
        """Return hidden states, and what every layer lets later tokens look at.

        Parameters
        ----------
        tokens, positions : Array (P, G, T), int32
            Positions count from the beginning of the prompt.
        visible : Array (P, G, T, S), bool
            Which of the responses' own tokens each token looks at: S = T, or that of the cache.
        past : Past, optional
            Of the prompts that the responses answer.
        cache : Cache, optional
            Where the tokens before these are; these are put at its place.

        Returns
        -------
        hidden : Array (P, G, T, H)
        layers : tuple of KeysValues
            (P, G, S, heads, head width) each.
        """
        states = self.embedding[...][tokens]
        kept = []
        for number, block in enumerate(self.blocks):
            shared = None if past is None else (past.layers[number], past.mask)
            room = None if cache is None else (cache.layers[number], cache.place)
            states, own = block(states, positions, visible, shared, room)
            kept.append(own)
        return self.norm(states), tuple(kept)


class Block(nnx.Module):
    """Attention and feed-forward, each added to what comes in."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        width, hidden = config.width, config.feed_forward
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.feed_forward_norm = nnx.RMSNorm(width, rngs=rngs)
        self.gate_up = nnx.Linear(width, 2 * hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(
        self,
        states: Array,
        positions: Array,
        visible: Array,
        shared: tuple[KeysValues, Array] | None,
        room: tuple[KeysValues, Array] | None,
    ) -> tuple[Array, KeysValues]:
        """Return the states (P, G, T, H) after this layer, and its keys and values."""
        parts = self.queries_keys_values(self.attention_norm(states))
        parts = parts.reshape(*parts.shape[:-1], 3, self.heads, -1)
        queries, keys = (_rotate(parts[..., part, :, :], positions) for part in (0, 1))
        own = KeysValues(keys, parts[..., 2, :, :])
        if room is not None:
            own = KeysValues(
                *(
                    jax.lax.dynamic_update_slice_in_dim(there, new, room[1], axis=2)
                    for there, new in zip(room[0], own, strict=True)
                )
            )
        mixed = _attend(queries, own, visible, shared)
        states = states + self.out(mixed.reshape(states.shape))
        gate, up = jnp.split(self.gate_up(self.feed_forward_norm(states)), 2, axis=-1)
        return states + self.down(jax.nn.silu(gate) * up), own


def _attend(
    queries: Array,
    own: KeysValues,
    visible: Array,
    shared: tuple[KeysValues, Array] | None,
) -> Array:
    """Return what (P, G, T, heads, d) queries see of their own response and of its prompt."""
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("pgthd,pgshd->phgts", queries, own.keys)
    scores = jnp.where(visible[:, None], scores, _UNSEEN)
    if shared is None:
        return jnp.einsum("phgts,pgshd->pgthd", jax.nn.softmax(scores), own.values)
    prompt, mask = shared
    to_prompt = jnp.einsum("pgthd,plhd->phgtl", queries, prompt.keys)
    to_prompt = jnp.where(mask[:, None, None, None], to_prompt, _UNSEEN)
    weights = jax.nn.softmax(jnp.concatenate([to_prompt, scores], axis=-1))
    of_prompt, of_own = jnp.split(weights, [mask.shape[-1]], axis=-1)
    return jnp.einsum("phgtl,plhd->pgthd", of_prompt, prompt.values) + jnp.einsum(
        "phgts,pgshd->pgthd", of_own, own.values
    )


def _rotate(vectors: Array, positions: Array) -> Array:
    """Turn each pair of halves of (P, G, T, heads, d) vectors by an angle of its position."""
    half = vectors.shape[-1] // 2
    rates = _ROTARY_BASE ** (-jnp.arange(half, dtype=vectors.dtype) / half)
    angles = positions.astype(vectors.dtype)[..., None, None] * rates[None, None, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = vectors[..., :half], vectors[..., half:]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    return 0.02 * jax.random.normal(rngs.params(), shape)
