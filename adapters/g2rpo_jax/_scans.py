"""Scans over tiles: from hidden states to softmaxes, and back to gradients.

T tokens are cut into n tiles of t by their place modulo n, so that arrays sharded over tokens
stay where they are: every device has its share of each tile. A last run of vocabulary entries
that would be short starts earlier instead, and leaves out what the run before it has had.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._tiles import (
    Columns,
    Options,
    Pull,
    RunningSoftmax,
    Softmax,
    product,
    sum_dtype,
    tile_of_gradient,
    tile_of_logits,
)

#: Label of a token that does not count.
IGNORED = -1


class Needs(NamedTuple):
    """Which gradients are needed: by each of the states and weights, and by the bias."""

    states: tuple[bool, ...]
    weights: tuple[bool, ...]
    bias: bool


class Gradients(NamedTuple):
    """Gradients by states, weights and bias; None for one that is not needed."""

    states: tuple[Array | None, ...]
    weights: tuple[Array | None, ...]
    bias: Array | None


def choose_tile() -> tuple[int, int]:
    """Return the size of the tiles on the default device."""
    # On a CPU two tiles of 2 MB stay in the cache beside the operands of the products; an
    # accelerator wants enough rows and columns to fill it.
    return (512, 1024) if jax.default_backend() == "cpu" else (2048, 8192)


def operand_dtype(*arrays: Array) -> Any:
    """Return what products take: the arrays' own dtype if they share one, else a wider one."""
    # Explicit here, so it may be asked for where promotion is to be strict.
    with jax.numpy_dtype_promotion("standard"):
        return reduce(jnp.promote_types, (array.dtype for array in arrays))


@partial(jax.jit, static_argnames="options")
def softmax_of(
    states: tuple[Array, ...],
    weights: tuple[Array, ...],
    bias: Array | None,
    labels: Array,
    options: Options,
) -> Softmax:
    """Return the softmax of T tokens: states (T, K), weights (V, K), bias (V,), labels (T,).

    Labels are int32. States of tokens labelled ``IGNORED`` may be anything, and what these tokens
    give is arbitrary; with another label outside of the vocabulary the log-probability is NaN.
    """
    operands = operand_dtype(*states, *weights)
    tiles = _Tiles(states, labels, options, operands)
    columns_of = partial(_columns, weights, bias, options.tile[1], operands)

    def of_tile(_: None, number: Array) -> tuple[None, Softmax]:
        labels, states = tiles.at(number)

        def fold(running: RunningSoftmax, run: Array) -> tuple[RunningSoftmax, None]:
            columns = columns_of(run)
            logits = tile_of_logits(states, columns, options)
            return running.fold(logits, labels, columns), None

        start = RunningSoftmax.start(jnp.zeros_like(labels, dtype=sum_dtype(operands)))
        runs = _numbers(_pieces(weights[0].shape[0], options.tile[1]))
        return None, lax.scan(fold, start, runs)[0].finish()

    softmax = lax.scan(of_tile, None, _numbers(tiles.count))[1]
    return Softmax(*(tiles.joined(values.T) for values in softmax))


@partial(jax.jit, static_argnames=("needs", "options"))
def softmax_pulled(
    states: tuple[Array, ...],
    weights: tuple[Array, ...],
    bias: Array | None,
    labels: Array,
    softmax: Softmax,
    pull: Pull,
    needs: Needs,
    options: Options,
) -> Gradients:
    """Return the gradients that are needed; the logits are computed again."""
    operands = operand_dtype(*states, *weights)
    tiles = _Tiles(states, labels, options, operands)
    softmax = Softmax(*(tiles.cut(values) for values in softmax))
    pull = Pull(*(None if values is None else tiles.cut(values) for values in pull))

    def of_run(sums: Gradients, run: Array) -> tuple[Gradients, None]:
        # Entries outside, tokens inside: the gradient of a run's weights is complete at its end.
        columns = _columns(weights, bias, options.tile[1], operands, run)

        def of_tile(sums: Gradients, number: Array) -> tuple[Gradients, None]:
            labels, states = tiles.at(number)
            here, pulled = jax.tree.map(lambda values: _pick(values, number), (softmax, pull))
            logits = tile_of_logits(states, columns, options)
            gradient = tile_of_gradient(logits, here, pulled, labels, columns, options)
            return _add_tile(sums, gradient, states, columns, number), None

        parts = Gradients(sums.states, *_zeros(needs, columns.weights, columns.bias, operands))
        parts, _ = lax.scan(of_tile, parts, _numbers(tiles.count))
        stored = jax.tree.map(
            lambda total, part: _add_at(total, part, columns.start),
            (sums.weights, sums.bias),
            (parts.weights, parts.bias),
        )
        return Gradients(parts.states, *stored), None

    by_states = tuple(
        jnp.zeros_like(x, dtype=sum_dtype(operands)) if needed else None
        for x, needed in zip(tiles.states, needs.states, strict=True)
    )
    totals = Gradients(by_states, *_zeros(needs, weights, bias))
    totals, _ = lax.scan(of_run, totals, _numbers(_pieces(weights[0].shape[0], options.tile[1])))
    by_states = tuple(
        None if total is None else tiles.joined(total).astype(state.dtype)
        for total, state in zip(totals.states, states, strict=True)
    )
    return totals._replace(states=by_states)


class _Tiles:
    """T tokens as n tiles of t: an array (T, ...) is cut into (t, n, ...)."""

    def __init__(
        self, states: tuple[Array, ...], labels: Array, options: Options, operands: Any
    ) -> None:
        self._size, self._operands = labels.shape[0], operands
        self.count = _pieces(self._size, options.tile[0])
        self.states = tuple(self.cut(state) for state in states)
        self._labels = self.cut(labels, fill=IGNORED)

    def cut(self, values: Array, fill: int = 0) -> Array:
        """Return (t, n, ...); the places beyond the last token are filled."""
        rows = _pieces(self._size, self.count)
        missing = rows * self.count - self._size
        if missing:
            padding = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
            values = jnp.pad(values, padding, constant_values=fill)
        return values.reshape(rows, self.count, *values.shape[1:])

    def joined(self, values: Array) -> Array:
        """Return (t, n, ...) as (T, ...)."""
        return values.reshape(-1, *values.shape[2:])[: self._size]

    def at(self, number: Array) -> tuple[Array, tuple[Array, ...]]:
        """Return the labels and states of one tile; the states of ignored tokens are 0."""
        labels = _pick(self._labels, number)
        counts = (labels != IGNORED)[:, None]
        states = (_pick(state, number) for state in self.states)
        return labels, tuple(
            jnp.where(counts, state.astype(self._operands), 0.0) for state in states
        )


def _columns(
    weights: tuple[Array, ...], bias: Array | None, width: int, operands: Any, run: Array
) -> Columns:
    """Return run number ``run`` of the vocabulary."""
    size = weights[0].shape[0]
    width = min(width, size)
    fresh = run * width
    start = jnp.minimum(fresh, size - width)

    def cut(values: Array, dtype: Any) -> Array:
        return lax.dynamic_slice_in_dim(values, start, width).astype(dtype)

    excluded = None
    if size % width:
        excluded = start + _numbers(width) < fresh
    if bias is not None:
        bias = cut(bias, sum_dtype(operands))
        absent = bias == -jnp.inf
        excluded = absent if excluded is None else excluded | absent
    return Columns(tuple(cut(w, operands) for w in weights), bias, excluded, start, fresh)


def _add_tile(
    sums: Gradients, gradient: Array, states: tuple[Array, ...], columns: Columns, number: Array
) -> Gradients:
    """Add what a tile's gradient (t, w) contributes, to the sums that there are."""
    by_bias = None if sums.bias is None else sums.bias + jnp.sum(gradient, axis=0)
    gradient = gradient.astype(states[0].dtype)
    by_states = tuple(
        None
        if total is None
        else total.at[:, number].add(product(gradient, weight, 1, 0), mode="promise_in_bounds")
        for total, weight in zip(sums.states, columns.weights, strict=True)
    )
    by_weights = tuple(
        None if total is None else total + product(gradient, state, 0, 0)
        for total, state in zip(sums.weights, states, strict=True)
    )
    return Gradients(by_states, by_weights, by_bias)


def _zeros(
    needs: Needs, weights: tuple[Array, ...], bias: Array | None, operands: Any = None
) -> tuple[tuple[Array | None, ...], Array | None]:
    """Return zeros like the weights and the bias that need a gradient, to add up in."""
    dtype = None if operands is None else sum_dtype(operands)
    by_weights = tuple(
        jnp.zeros_like(weight, dtype=dtype) if needed else None
        for weight, needed in zip(weights, needs.weights, strict=True)
    )
    by_bias = jnp.zeros_like(bias, dtype=dtype) if bias is not None and needs.bias else None
    return by_weights, by_bias


def _add_at(total: Array, part: Array, start: Array) -> Array:
    """Add the rows of a run: exact, as every row gets one addend that is not 0."""
    rows = lax.dynamic_slice_in_dim(total, start, part.shape[0])
    return lax.dynamic_update_slice_in_dim(total, rows + part.astype(total.dtype), start, axis=0)


def _pick(values: Array, number: Array) -> Array:
    return lax.dynamic_index_in_dim(values, number, axis=1, keepdims=False)


def _numbers(count: int) -> Array:
    """Return 0 .. count - 1, int32 whatever the default integer is."""
    return jnp.arange(count, dtype=jnp.int32)


def _pieces(size: int, length: int) -> int:
    """Return how many pieces of at most ``length`` make ``size``."""
    return -(-size // length)
