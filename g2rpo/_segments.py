"""Sorted segments, and sums over them that are exact whatever stands around a segment.

A difference of running sums is the only segmented sum that needs neither a loop nor a scatter,
but in floating point it carries the rounding of everything before the segment. Here the running
sum is taken over integers: they wrap instead of rounding, so the difference is the segment's own
sum to the last bit, independent of its place, of its neighbours and of the order inside it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from g2rpo._libraries import (
    device_of,
    gather,
    inverse_permutation,
    run_starts,
    running_sum,
    sorted_order,
)
from g2rpo._typing import Array, Namespace


class Layout(NamedTuple):
    """An ordering of N elements by segment; all fields are integer arrays (N,).

    Attributes
    ----------
    order : array
        Index of the element at each sorted position.
    inverse : array
        Sorted position of each element.
    labels_differ : array of bool
        Whether a sorted position opens a segment.
    first, stop : array
        Bounds of the segment that a sorted position belongs to, as sorted positions.
    """

    order: Array
    inverse: Array
    labels_differ: Array
    first: Array
    stop: Array


def sort_by_segment(xp: Namespace, labels: Array, keys: Array | None = None) -> Layout:
    """Order elements by label and, within a label, by ``keys`` (no NaN) or as they came."""
    order = xp.argsort(labels, stable=True) if keys is None else sorted_order(xp, labels, keys)
    opens = differs_from_previous(xp, gather(xp, labels, order))
    first, stop = run_bounds(xp, opens)
    return Layout(order, inverse_permutation(xp, order), opens, first, stop)


def differs_from_previous(xp: Namespace, values: Array) -> Array:
    """Return (N,) bool: whether each element differs from the one before it; the first does."""
    return xp.concat([xp.ones_like(values[:1], dtype=xp.bool), values[1:] != values[:-1]])


def run_bounds(xp: Namespace, opens: Array) -> tuple[Array, Array]:
    """Return first and one-past-last position of the run that each position belongs to."""
    integer = xp.arange(0, device=device_of(opens)).dtype
    run = xp.cumulative_sum(xp.astype(opens, integer), dtype=integer) - 1
    starts = run_starts(xp, run)
    return gather(xp, starts, run), gather(xp, starts, run + 1)


def count(xp: Namespace, flags: Array, first: Array, stop: Array) -> Array:
    """Return how many flags are set in [first, stop)."""
    return _integer_sum(xp, xp.astype(flags, first.dtype), first, stop)


def exact_sum(xp: Namespace, values: Array, first: Array, stop: Array, *, bits: int) -> Array:
    """Return the sums of ``values`` over [first, stop), for values of magnitude up to 2**bits.

    Each value is cut into integer limbs wide enough that together they hold every bit that
    matters and narrow enough that no sum overflows; how many is known from the array's size and
    the library's integer width (two for 64-bit integers, more where JAX has only 32 bits).
    Opposite values have opposite limbs, so a symmetric sum is exactly 0.

    Parameters
    ----------
    values : array
        Floating point, shape (N,), finite.
    first, stop : array
        Integer positions, shape (N,), 0 <= first <= stop <= N.
    bits : int
        Bound on the magnitude, as a power of two.

    Returns
    -------
    array
        Shape (N,), the dtype of ``values``: the sum of values rounded to a grid finer than
        eps / N, converted to floating point limb by limb. Within one call it depends on nothing
        but the segment's own values.
    """
    growth = values.shape[0].bit_length()
    digits = 1 - round(math.log2(xp.finfo(values.dtype).eps))
    width = max(1, xp.iinfo(first.dtype).bits - 2 - growth)
    limbs = -(-(digits + growth + bits) // width)
    sums, unit, rest = [], 2.0**bits, values
    for _ in range(limbs):
        unit *= 2.0**-width
        limb = xp.round(rest / unit)
        rest = rest - limb * unit
        limb_sum = _integer_sum(xp, xp.astype(limb, first.dtype), first, stop)
        sums.append(xp.astype(limb_sum, values.dtype) * unit)
    total = sums.pop()
    while sums:
        total = total + sums.pop()
    return total


def segment_peak(xp: Namespace, values: Array, labels: Array) -> Array:
    """Return for each element the largest value of its segment; shape (N,), no NaN."""
    layout = sort_by_segment(xp, labels, values)
    largest = gather(xp, gather(xp, values, layout.order), layout.stop - 1)
    return gather(xp, largest, layout.inverse)


def renumber(xp: Namespace, labels: Array) -> Array:
    """Replace labels by 0, 1, ... in their sorted order; shape (N,)."""
    order = xp.argsort(labels, stable=True)
    opens = differs_from_previous(xp, gather(xp, labels, order))
    inverse = inverse_permutation(xp, order)
    number = xp.cumulative_sum(xp.astype(opens, inverse.dtype), dtype=inverse.dtype) - 1
    return gather(xp, number, inverse)


def _integer_sum(xp: Namespace, values: Array, first: Array, stop: Array) -> Array:
    running = running_sum(xp, values)
    return gather(xp, running, stop) - gather(xp, running, first)
