"""Softmax of hidden states and its gradients, as scans over tiles.

T tokens are split into n tiles of t tokens by their index modulo n, so that arrays sharded over
tokens are not moved: every device has a part of each tile. If the last vocabulary slice would be
short, it starts earlier and excludes the entries of the slice before it.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._tiles import (
    Options,
    OutputGrads,
    RunningSoftmax,
    Softmax,
    VocabSlice,
    logit_gradient,
    logits_of_tile,
    product,
    sum_dtype,
)

#: Label of a token that does not count.
IGNORED = -1


class Needs(NamedTuple):
    """Flags of the gradients that are needed, by states, weights and bias."""

    states: tuple[bool, ...]
    weights: tuple[bool, ...]
    bias: bool


class Gradients(NamedTuple):
    """Gradients by states, weights and bias; None where not needed."""

    states: tuple[Array | None, ...]
    weights: tuple[Array | None, ...]
    bias: Array | None


def choose_tile() -> tuple[int, int]:
    """Return the size of the tiles on the default device."""
    # On a CPU two tiles of 2 MB fit into the cache together with the operands of the products; an
    # accelerator needs more rows and columns for full load.
    return (512, 1024) if jax.default_backend() == "cpu" else (2048, 8192)


def operand_dtype(*arrays: Array) -> Any:
    """Return the dtype of the operands of products: that of the arrays, or the promoted one."""
    # Explicit promotion, also allowed where implicit promotion is an error.
    with jax.numpy_dtype_promotion("standard"):
        return reduce(jnp.promote_types, (array.dtype for array in arrays))


@partial(jax.jit, static_argnames="options")
def softmax_forward(
    states: tuple[Array, ...],
    weights: tuple[Array, ...],
    bias: Array | None,
    labels: Array,
    options: Options,
) -> Softmax:
    """Return the softmax of T tokens: states (T, K), weights (V, K), bias (V,), labels (T,).

    Labels are int32. Tokens labelled ``IGNORED`` may have any states, and get arbitrary results;
    for another label outside of the vocabulary the log-probability is NaN.
    """
    operands = operand_dtype(*states, *weights)
    tiles = _TokenTiles(states, labels, options, operands)

    def scan_vocabulary(_: None, number: Array) -> tuple[None, Softmax]:
        labels, states = tiles.tile(number)

        def update(running: RunningSoftmax, slice_: Array) -> tuple[RunningSoftmax, None]:
            vocab = _vocab_slice(weights, bias, options.tile[1], operands, slice_)
            logits = logits_of_tile(states, vocab, options)
            return running.update(logits, labels, vocab), None

        start = RunningSoftmax.start(jnp.zeros_like(labels, dtype=sum_dtype(operands)))
        slices = _range(_ceil_div(weights[0].shape[0], options.tile[1]))
        return None, lax.scan(update, start, slices)[0].result()

    softmax = lax.scan(scan_vocabulary, None, _range(tiles.count))[1]
    return Softmax(*(tiles.join(values.T) for values in softmax))


@partial(jax.jit, static_argnames=("needs", "options"))
def softmax_backward(
    states: tuple[Array, ...],
    weights: tuple[Array, ...],
    bias: Array | None,
    labels: Array,
    softmax: Softmax,
    grads: OutputGrads,
    needs: Needs,
    options: Options,
) -> Gradients:
    """Return the gradients that are needed, from recomputed logits."""
    operands = operand_dtype(*states, *weights)
    tiles = _TokenTiles(states, labels, options, operands)
    softmax = Softmax(*(tiles.split(values) for values in softmax))
    grads = OutputGrads(*(None if values is None else tiles.split(values) for values in grads))

    def scan_tokens(sums: Gradients, slice_: Array) -> tuple[Gradients, None]:
        # The outer loop is over the vocabulary: at its end a slice's gradient is complete.
        vocab = _vocab_slice(weights, bias, options.tile[1], operands, slice_)

        def add(sums: Gradients, number: Array) -> tuple[Gradients, None]:
            labels, states = tiles.tile(number)
            statistics, output_grads = jax.tree.map(
                lambda values: _column(values, number), (softmax, grads)
            )
            logits = logits_of_tile(states, vocab, options)
            gradient = logit_gradient(logits, statistics, output_grads, labels, vocab, options)
            return _add_tile(sums, gradient, states, vocab, number), None

        parts = Gradients(sums.states, *_zeros(needs, vocab.weights, vocab.bias, operands))
        parts, _ = lax.scan(add, parts, _range(tiles.count))
        stored = jax.tree.map(
            lambda total, part: _add_at(total, part, vocab.start),
            (sums.weights, sums.bias),
            (parts.weights, parts.bias),
        )
        return Gradients(parts.states, *stored), None

    by_states = tuple(
        jnp.zeros_like(x, dtype=sum_dtype(operands)) if needed else None
        for x, needed in zip(tiles.states, needs.states, strict=True)
    )
    totals = Gradients(by_states, *_zeros(needs, weights, bias))
    slices = _range(_ceil_div(weights[0].shape[0], options.tile[1]))
    totals, _ = lax.scan(scan_tokens, totals, slices)
    by_states = tuple(
        None if total is None else tiles.join(total).astype(state.dtype)
        for total, state in zip(totals.states, states, strict=True)
    )
    return totals._replace(states=by_states)


class _TokenTiles:
    """T tokens as n tiles of t tokens: an array (T, ...) is split into (t, n, ...)."""

    def __init__(
        self, states: tuple[Array, ...], labels: Array, options: Options, operands: Any
    ) -> None:
        self._size, self._operands = labels.shape[0], operands
        self.count = _ceil_div(self._size, options.tile[0])
        self.states = tuple(self.split(state) for state in states)
        self._labels = self.split(labels, fill=IGNORED)

    def split(self, values: Array, fill: int = 0) -> Array:
        """Return (T, ...) as (t, n, ...), padded with ``fill``."""
        rows = _ceil_div(self._size, self.count)
        missing = rows * self.count - self._size
        if missing:
            padding = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
            values = jnp.pad(values, padding, constant_values=fill)
        return values.reshape(rows, self.count, *values.shape[1:])

    def join(self, values: Array) -> Array:
        """Return (t, n, ...) as (T, ...)."""
        return values.reshape(-1, *values.shape[2:])[: self._size]

    def tile(self, number: Array) -> tuple[Array, tuple[Array, ...]]:
        """Return the labels and states of one tile; the states of ignored tokens are 0."""
        labels = _column(self._labels, number)
        counts = (labels != IGNORED)[:, None]
        states = (_column(state, number) for state in self.states)
        return labels, tuple(
            jnp.where(counts, state.astype(self._operands), 0.0) for state in states
        )


def _vocab_slice(
    weights: tuple[Array, ...], bias: Array | None, width: int, operands: Any, number: Array
) -> VocabSlice:
    """Return one slice of the vocabulary by its number."""
    size = weights[0].shape[0]
    width = min(width, size)
    first_new = number * width
    start = jnp.minimum(first_new, size - width)

    def entries(values: Array, dtype: Any) -> Array:
        return lax.dynamic_slice_in_dim(values, start, width).astype(dtype)

    excluded = None
    if size % width:
        excluded = start + _range(width) < first_new
    if bias is not None:
        bias = entries(bias, sum_dtype(operands))
        infinite = bias == -jnp.inf
        excluded = infinite if excluded is None else excluded | infinite
    return VocabSlice(
        tuple(entries(w, operands) for w in weights), bias, excluded, start, first_new
    )


def _add_tile(
    sums: Gradients, gradient: Array, states: tuple[Array, ...], vocab: VocabSlice, number: Array
) -> Gradients:
    """Add the shares of a tile, given its gradient by the logits (t, w), to the needed sums."""
    by_bias = None if sums.bias is None else sums.bias + jnp.sum(gradient, axis=0)
    gradient = gradient.astype(states[0].dtype)
    by_states = tuple(
        None
        if total is None
        else total.at[:, number].add(product(gradient, weight, 1, 0), mode="promise_in_bounds")
        for total, weight in zip(sums.states, vocab.weights, strict=True)
    )
    by_weights = tuple(
        None if total is None else total + product(gradient, state, 0, 0)
        for total, state in zip(sums.weights, states, strict=True)
    )
    return Gradients(by_states, by_weights, by_bias)


def _zeros(
    needs: Needs, weights: tuple[Array, ...], bias: Array | None, operands: Any = None
) -> tuple[tuple[Array | None, ...], Array | None]:
    """Return zeros like the weights and the bias that need a gradient."""
    dtype = None if operands is None else sum_dtype(operands)
    by_weights = tuple(
        jnp.zeros_like(weight, dtype=dtype) if needed else None
        for weight, needed in zip(weights, needs.weights, strict=True)
    )
    by_bias = jnp.zeros_like(bias, dtype=dtype) if bias is not None and needs.bias else None
    return by_weights, by_bias


def _add_at(total: Array, part: Array, start: Array) -> Array:
    """Add the rows of a vocabulary slice; exact, since only one addend of a row is not 0."""
    rows = lax.dynamic_slice_in_dim(total, start, part.shape[0])
    return lax.dynamic_update_slice_in_dim(total, rows + part.astype(total.dtype), start, axis=0)


def _column(values: Array, number: Array) -> Array:
    return lax.dynamic_index_in_dim(values, number, axis=1, keepdims=False)


def _range(count: int) -> Array:
    """Return 0 .. count - 1, int32 for any default integer dtype."""
    return jnp.arange(count, dtype=jnp.int32)


def _ceil_div(size: int, length: int) -> int:
    return -(-size // length)
