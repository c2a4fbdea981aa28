"""Arithmetic on tiles of logits: what a softmax over them needs, and its gradient.

A tile is a block of logits, tokens by vocabulary entries. Nothing here knows how tiles follow one
another, nor that there is differentiation; see :mod:`g2rpo_jax._scans`.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

Tree = TypeVar("Tree")

# Where exp is 0 in float64, too. Minus infinity itself would give 0 * inf = NaN in p log p.
_FLOOR = -800.0
# Below every logit; with minus infinity the difference of two of them would be NaN.
_LOWEST = -1e30


class Options(NamedTuple):
    """What is static in :func:`g2rpo_jax.logprobs_and_entropy`; ``tile`` is tokens, entries."""

    temperature: float
    softcap: float | None
    tile: tuple[int, int]


class Columns(NamedTuple):
    """A run of w vocabulary entries.

    Attributes
    ----------
    weights : tuple of array
        Shape (w, K) each, in the dtype that products take.
    bias : array or None
        Shape (w,), in the dtype that products are accumulated in.
    excluded : array of bool or None
        Shape (w,): entries that do not count, because of their bias or because an earlier run has
        had them.
    start : array
        The first entry.
    fresh : array
        The first entry that no earlier run has had.
    """

    weights: tuple[Array, ...]
    bias: Array | None
    excluded: Array | None
    start: Array
    fresh: Array

    def place_of(self, labels: Array) -> tuple[Array, Array]:
        """Return each label's place among the entries, and if it is one of them and fresh."""
        width = self.weights[0].shape[0]
        stop = self.start + width
        place = jnp.clip(labels - self.start, 0, width - 1)
        return place, (labels >= self.fresh) & (labels < stop)


def sum_dtype(operands: Any) -> Any:
    """Return the dtype that products of ``operands`` are accumulated in."""
    return jnp.float64 if operands == jnp.float64 else jnp.float32


def product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Multiply two matrices of one dtype along an axis of each, accumulated in full precision."""
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=sum_dtype(a.dtype))


def tile_of_logits(states: tuple[Array, ...], columns: Columns, options: Options) -> Array:
    """Return logits (t, w) of states (t, K) each; minus infinity where excluded."""
    pairs = zip(states, columns.weights, strict=True)
    logits = reduce(operator.add, (product(s, w, 1, 1) for s, w in pairs))
    if columns.bias is not None:
        logits = logits + columns.bias[None, :]
    if options.softcap is not None:
        logits = jnp.tanh(logits * (1.0 / options.softcap)) * options.softcap
    logits = logits * (1.0 / options.temperature)
    if columns.excluded is not None:
        logits = jnp.where(columns.excluded[None, :], -jnp.inf, logits)
    return logits


class Softmax(NamedTuple):
    """What T tokens' softmax comes down to; shape (T,) each."""

    logprobs: Array
    entropy: Array
    normalizer: Array


class RunningSoftmax(NamedTuple):
    """The softmax of t tokens while their logits pass by, tile by tile; shape (t,) each.

    Attributes
    ----------
    highest : array
        The largest logit so far.
    total, weighted : array
        Sums of e and e · x with x = logit - highest and e = exp(x).
    target : array
        The label's logit; NaN until it has passed by.
    """

    highest: Array
    total: Array
    weighted: Array
    target: Array

    @classmethod
    def start(cls, like: Array) -> RunningSoftmax:
        """Return the state before the first tile, for an array (t,) of the logits' dtype."""
        zeros = jnp.zeros_like(like)
        return cls(zeros + _LOWEST, zeros, zeros, zeros + jnp.nan)

    def fold(self, logits: Array, labels: Array, columns: Columns) -> RunningSoftmax:
        """Take in a tile (t, w)."""
        place, inside = columns.place_of(labels)
        found = jnp.take_along_axis(logits, place[:, None], axis=1, mode="promise_in_bounds")
        highest = jnp.maximum(self.highest, jnp.max(logits, axis=1))
        shifted = jnp.maximum(logits - highest[:, None], _FLOOR)
        weights = jnp.exp(shifted)
        # A higher reference shrinks every earlier e, and moves every earlier x.
        move = self.highest - highest
        decay = jnp.exp(move)
        return RunningSoftmax(
            highest,
            decay * self.total + jnp.sum(weights, axis=1),
            decay * (self.weighted + move * self.total) + jnp.sum(weights * shifted, axis=1),
            jnp.where(inside, found[:, 0], self.target),
        )

    def finish(self) -> Softmax:
        """Return the results, once every entry has passed by."""
        # A row without a finite logit has total 0: entropy 0, as in the core.
        total = jnp.where(self.total > 0, self.total, 1.0)
        log_total = jnp.log(total)
        return Softmax(
            logprobs=(self.target - self.highest) - log_total,
            entropy=log_total - self.weighted / total,
            normalizer=self.highest + log_total,
        )


class Pull(NamedTuple):
    """A loss's derivatives by log-probabilities and entropies (t,); None where there are none."""

    logprobs: Array | None
    entropy: Array | None


def tile_of_gradient(
    logits: Array,
    softmax: Softmax,
    pull: Pull,
    labels: Array,
    columns: Columns,
    options: Options,
) -> Array:
    r"""Return the gradient (t, w) by the products that a tile of logits came from.

    With pulls a at the log-probability of label y and b at the entropy H, the gradient by
    logit v is :math:`a 1[v = y] - p_v (a + b (\log p_v + H))`.
    """
    logp = jnp.maximum(logits - softmax.normalizer[:, None], _FLOOR)
    p = jnp.exp(logp)
    gradient = jnp.zeros_like(logits)
    if pull.logprobs is not None:
        place, inside = columns.place_of(labels)
        entries = lax.broadcasted_iota(place.dtype, logits.shape, 1)
        is_label = (entries == place[:, None]) & inside[:, None]
        at_label = pull.logprobs[:, None]
        gradient = jnp.where(is_label, at_label, 0.0) - p * at_label
    if pull.entropy is not None:
        surprise = logp + softmax.entropy[:, None]
        gradient = gradient - p * pull.entropy[:, None] * surprise
    gradient = gradient * (1.0 / options.temperature)
    if options.softcap is None:
        return gradient
    tanh = logits * (options.temperature / options.softcap)
    slope = 1.0 - jnp.square(tanh)
    if columns.excluded is not None:
        slope = jnp.where(columns.excluded[None, :], 0.0, slope)
    return gradient * jnp.maximum(slope, 0.0)


def alike(arrays: Tree) -> Tree:
    """Return a tree of arrays with each varying over all mesh axes that any varies over.

    Inside ``jax.shard_map`` loops want it so, and gradients of what is the same on every device
    are then added up over the devices. Elsewhere nothing happens.
    """
    leaves, structure = jax.tree.flatten(arrays)
    own = [jnp.zeros_like(leaf, shape=(), dtype=bool) for leaf in leaves]
    union = reduce(operator.or_, own)
    return jax.tree.unflatten(
        structure,
        [
            # The flag is false, and known to be so when the program is compiled: a mere cast.
            leaf if jax.typeof(flag) == jax.typeof(union) else jnp.where(union, 0, leaf)
            for leaf, flag in zip(leaves, own, strict=True)
        ],
    )
