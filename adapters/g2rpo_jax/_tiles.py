"""Arithmetic on tiles of logits: softmax statistics, and the gradient by the logits.

A tile is a block of logits, tokens by vocabulary entries. The loops over tiles are in
:mod:`g2rpo_jax._softmax`, the differentiation rule in :mod:`g2rpo_jax.logprobs`.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

Tree = TypeVar("Tree")

# exp(-800) is 0 in float64. Minus infinity would give 0 * inf = NaN in p log p.
_FLOOR = -800.0
# Below every logit; the difference of two infinities would be NaN.
_LOWEST = -1e30


class Options(NamedTuple):
    """Static options of :func:`g2rpo_jax.logprobs_and_entropy`; ``tile`` is (tokens, entries)."""

    temperature: float
    softcap: float | None
    tile: tuple[int, int]


class VocabSlice(NamedTuple):
    """A slice of w vocabulary entries.

    Attributes
    ----------
    weights : tuple of array
        Shape (w, K) each, in the dtype of the operands of products.
    bias : array or None
        Shape (w,), in the dtype of the sums.
    excluded : array of bool or None
        Shape (w,): entries with a bias of minus infinity, or in an earlier slice.
    start : array
        The first entry.
    first_new : array
        The first entry that is in no earlier slice.
    """

    weights: tuple[Array, ...]
    bias: Array | None
    excluded: Array | None
    start: Array
    first_new: Array

    def find(self, labels: Array) -> tuple[Array, Array]:
        """Return each label's index in the slice, and whether it is there and in no earlier one."""
        width = self.weights[0].shape[0]
        stop = self.start + width
        index = jnp.clip(labels - self.start, 0, width - 1)
        return index, (labels >= self.first_new) & (labels < stop)


def sum_dtype(operands: Any) -> Any:
    """Return the dtype that products of ``operands`` are accumulated in."""
    return jnp.float64 if operands == jnp.float64 else jnp.float32


def product(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    """Multiply two matrices of one dtype along an axis of each, accumulated in full precision."""
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=sum_dtype(a.dtype))


def logits_of_tile(states: tuple[Array, ...], vocab: VocabSlice, options: Options) -> Array:
    """Return logits (t, w) of states (t, K) each; minus infinity where excluded."""
    pairs = zip(states, vocab.weights, strict=True)
    logits = reduce(operator.add, (product(s, w, 1, 1) for s, w in pairs))
    if vocab.bias is not None:
        logits = logits + vocab.bias[None, :]
    if options.softcap is not None:
        logits = jnp.tanh(logits * (1.0 / options.softcap)) * options.softcap
    logits = logits * (1.0 / options.temperature)
    if vocab.excluded is not None:
        logits = jnp.where(vocab.excluded[None, :], -jnp.inf, logits)
    return logits


class Softmax(NamedTuple):
    """Softmax statistics of T tokens, shape (T,) each."""

    logprobs: Array
    entropy: Array
    normalizer: Array


class RunningSoftmax(NamedTuple):
    """Softmax statistics of t tokens that are updated tile by tile (online softmax), (t,) each.

    Attributes
    ----------
    highest : array
        The largest logit so far.
    total, weighted : array
        Sums of e and e · x with x = logit - highest and e = exp(x).
    target : array
        The label's logit; NaN before its tile.
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

    def update(self, logits: Array, labels: Array, vocab: VocabSlice) -> RunningSoftmax:
        """Return the statistics after one more tile (t, w)."""
        index, inside = vocab.find(labels)
        found = jnp.take_along_axis(logits, index[:, None], axis=1, mode="promise_in_bounds")
        highest = jnp.maximum(self.highest, jnp.max(logits, axis=1))
        shifted = jnp.maximum(logits - highest[:, None], _FLOOR)
        weights = jnp.exp(shifted)
        # With a higher reference every earlier x changes by `shift`, and every e by exp(shift).
        shift = self.highest - highest
        decay = jnp.exp(shift)
        return RunningSoftmax(
            highest,
            decay * self.total + jnp.sum(weights, axis=1),
            decay * (self.weighted + shift * self.total) + jnp.sum(weights * shifted, axis=1),
            jnp.where(inside, found[:, 0], self.target),
        )

    def result(self) -> Softmax:
        """Return the statistics after the last tile."""
        # A row without a finite logit has total 0: entropy 0, as in the core.
        total = jnp.where(self.total > 0, self.total, 1.0)
        log_total = jnp.log(total)
        return Softmax(
            logprobs=(self.target - self.highest) - log_total,
            entropy=log_total - self.weighted / total,
            normalizer=self.highest + log_total,
        )


class OutputGrads(NamedTuple):
    """Gradients of a loss by log-probabilities and entropies (t,); None for one without."""

    logprobs: Array | None
    entropy: Array | None


def logit_gradient(
    logits: Array,
    softmax: Softmax,
    grads: OutputGrads,
    labels: Array,
    vocab: VocabSlice,
    options: Options,
) -> Array:
    r"""Return the gradient (t, w) by the sums W h + b of a tile of logits.

    With gradients a by the log-probability of label y and b by the entropy H, the gradient by
    logit v is :math:`a 1[v = y] - p_v (a + b (\log p_v + H))`.
    """
    logp = jnp.maximum(logits - softmax.normalizer[:, None], _FLOOR)
    p = jnp.exp(logp)
    gradient = jnp.zeros_like(logits)
    if grads.logprobs is not None:
        index, inside = vocab.find(labels)
        entries = lax.broadcasted_iota(index.dtype, logits.shape, 1)
        is_label = (entries == index[:, None]) & inside[:, None]
        by_logprob = grads.logprobs[:, None]
        gradient = jnp.where(is_label, by_logprob, 0.0) - p * by_logprob
    if grads.entropy is not None:
        surprise = logp + softmax.entropy[:, None]
        gradient = gradient - p * grads.entropy[:, None] * surprise
    gradient = gradient * (1.0 / options.temperature)
    if options.softcap is None:
        return gradient
    tanh = logits * (options.temperature / options.softcap)
    slope = 1.0 - jnp.square(tanh)
    if vocab.excluded is not None:
        slope = jnp.where(vocab.excluded[None, :], 0.0, slope)
    return gradient * jnp.maximum(slope, 0.0)


def with_common_axes(arrays: Tree) -> Tree:
    """Return arrays that all vary over the same mesh axes: those over which any of them varies.

    Loops inside of ``jax.shard_map`` require it, and the gradient of an array that is equal on all
    devices is then summed over them. Elsewhere the arrays are unchanged.
    """
    leaves, structure = jax.tree.flatten(arrays)
    own = [jnp.zeros_like(leaf, shape=(), dtype=bool) for leaf in leaves]
    union = reduce(operator.or_, own)
    return jax.tree.unflatten(
        structure,
        [
            # The flag is a compile-time constant, false: this is only a cast.
            leaf if jax.typeof(flag) == jax.typeof(union) else jnp.where(union, 0, leaf)
            for leaf, flag in zip(leaves, own, strict=True)
        ],
    )
