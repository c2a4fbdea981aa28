"""Sorted segments, and exact sums over them.

A difference of running sums needs neither a loop nor a scatter, but in floating point it has the
rounding errors of everything before the segment. Here the running sum is over integers: they wrap
around instead of rounding, so the difference is the sum of the segment to the last bit, independent
of its position, of other segments and of the order inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from g2rpo._libraries import (
    device_of,
    gather,
    index_dtype,
    inverse_permutation,
    row_order,
    run_starts,
    running_sum,
    sorted_order,
)
from g2rpo._typing import Array, Groups, Namespace


class Layout(NamedTuple):
    """An ordering of N elements by segment; all fields are integer arrays (N,).

    Attributes
    ----------
    order : array
        Index of the element at each sorted position.
    inverse : array
        Sorted position of each element.
    labels_differ : array of bool
        Whether a sorted position is the first of a segment.
    first, stop : array
        Bounds of the segment that a sorted position belongs to, as sorted positions.
    """

    order: Array
    inverse: Array
    labels_differ: Array
    first: Array
    stop: Array


def sort_by_segment(xp: Namespace, segments: Groups, keys: Array) -> Layout:
    """Order elements by segment and, within a segment, by ``keys``, which hold no NaN."""
    if isinstance(segments, int):
        return _sort_rows(xp, segments, keys)
    order = sorted_order(xp, segments, keys)
    opens = differs_from_previous(xp, gather(xp, segments, order))
    first, stop = run_bounds(xp, opens)
    return Layout(order, inverse_permutation(xp, order), opens, first, stop)


def _sort_rows(xp: Namespace, members: int, keys: Array) -> Layout:
    """Order segments of ``members`` consecutive elements: sort each row by itself."""
    position = xp.arange(keys.shape[0], device=device_of(keys))
    column = position % members
    first = position - column
    within = row_order(xp, xp.reshape(keys, (-1, members)))
    order = first + xp.astype(xp.reshape(within, (-1,)), first.dtype)
    return Layout(order, inverse_permutation(xp, order), column == 0, first, first + members)


def differs_from_previous(xp: Namespace, values: Array) -> Array:
    """Return (N,) bool: whether each element differs from the one before it; the first does."""
    return xp.concat([xp.ones_like(values[:1], dtype=xp.bool), values[1:] != values[:-1]])


def run_bounds(xp: Namespace, opens: Array) -> tuple[Array, Array]:
    """Return the first position of each position's run, and the one past its last."""
    integer = index_dtype(xp, opens)
    run = xp.cumulative_sum(xp.astype(opens, integer), dtype=integer) - 1
    starts = run_starts(xp, run)
    return gather(xp, starts, run), gather(xp, starts, run + 1)


def count(xp: Namespace, flags: Array, first: Array, stop: Array) -> Array:
    """Return how many flags are set in [first, stop)."""
    return sum_between(xp, xp.astype(flags, first.dtype), first, stop)


def exact_sum(
    xp: Namespace,
    values: Array,
    total: Callable[[Array], Array],
    *,
    bits: int,
    integer: Array,
    size: int | None = None,
) -> Array:
    """Return sums of ``values`` of magnitude up to 2**bits; ``total`` sums integers.

    Each value is split into integer limbs: together they hold all significant bits, and none is so
    wide that a sum overflows. Their number follows from the array's size and the library's integer
    width (two for 64-bit integers, more where JAX has only 32 bits). Opposite values have opposite
    limbs, so a symmetric sum is exactly 0.

    Parameters
    ----------
    values : array
        Floating point, shape (N,), finite.
    total : callable
        Sums integers (N,) to sums of any shape; each value at most once per sum.
    bits : int
        Bound on the magnitude, as a power of two.
    integer : dtype
        Of the limbs.
    size : int, optional
        Number of values for which the limbs are chosen; N by default. Equal sizes give equal limbs.

    Returns
    -------
    array
        The sums, in the dtype of ``values``, rounded to a grid finer than eps / N and converted
        to floating point limb by limb. For a given ``size`` a sum depends on its own values only.
    """
    growth = (values.shape[0] if size is None else size).bit_length()
    digits = 1 - round(math.log2(xp.finfo(values.dtype).eps))
    width = max(1, xp.iinfo(integer).bits - 2 - growth)
    limbs = -(-(digits + growth + bits) // width)
    sums, unit, rest = [], 2.0**bits, values
    for k in range(limbs):
        unit *= 2.0**-width
        limb = xp.round(rest / unit)
        if k + 1 < limbs:
            rest = rest - limb * unit
        limb_sum = total(xp.astype(limb, integer))
        sums.append(xp.astype(limb_sum, values.dtype) * unit)
    result = sums.pop()
    while sums:
        result = result + sums.pop()
    return result


def sum_between(xp: Namespace, values: Array, first: Array, stop: Array) -> Array:
    """Return the sums of integers (N,) over [first, stop), 0 <= first <= stop <= N."""
    running = running_sum(xp, values)
    return gather(xp, running, stop) - gather(xp, running, first)


def segment_peak(xp: Namespace, values: Array, segments: Groups) -> Array:
    """Return the largest value of each element's segment, shape (N,); ``values`` hold no NaN."""
    if isinstance(segments, int):
        rows = xp.reshape(values, (-1, segments))
        peaks = xp.max(rows, axis=1, keepdims=True)
        return xp.reshape(xp.broadcast_to(peaks, rows.shape), (-1,))
    layout = sort_by_segment(xp, segments, values)
    largest = gather(xp, gather(xp, values, layout.order), layout.stop - 1)
    return gather(xp, largest, layout.inverse)


def renumber(xp: Namespace, labels: Array) -> Array:
    """Replace labels by 0, 1, ... in their sorted order; shape (N,)."""
    order = xp.argsort(labels, stable=True)
    opens = differs_from_previous(xp, gather(xp, labels, order))
    inverse = inverse_permutation(xp, order)
    number = xp.cumulative_sum(xp.astype(opens, inverse.dtype), dtype=inverse.dtype) - 1
    return gather(xp, number, inverse)
