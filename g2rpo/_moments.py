"""Means and deviations of segments of any floats, without overflow or effects between segments.

Values are first scaled to [0, 1] by their segment's range. The sums are then exact (see
:mod:`g2rpo._segments`), and the deviation of equal values is exactly 0.
"""

from __future__ import annotations

from typing import NamedTuple

from g2rpo._libraries import gather
from g2rpo._segments import count, exact_sum, sort_by_segment, sum_between
from g2rpo._typing import Array, Groups, Namespace

#: Rewards are multiplied by this first, and so is every epsilon: the difference of two quarters of
#: the largest float does not overflow. A power of two keeps all digits.
SHRINK = 0.25


class Moments(NamedTuple):
    """Statistics of each value's segment, shape (N,), in the order and the unit of the values.

    Attributes
    ----------
    deviation : array
        Distance from the segment's mean; 0 for an absent value, NaN in a segment that holds an
        infinity.
    mean, range : array
        The segment's mean, and the distance of its largest from its smallest value.
    square_sum : array
        Sum of the squared deviations, in units of the squared range.
    size : array
        Number of present values, or the sum of their weights; floating point.
    """

    deviation: Array
    mean: Array
    range: Array
    square_sum: Array
    size: Array

    def std(self, xp: Namespace, *, unbiased: bool = True) -> Array:
        """Return the standard deviation; 0 for a single value."""
        freedom = self.size - 1.0 if unbiased else self.size
        return xp.sqrt(self.square_sum / xp.where(freedom > 0, freedom, 1.0)) * self.range


def moments(
    xp: Namespace, values: Array, segments: Groups, weights: Array | None = None
) -> Moments:
    """Return the moments of every segment; NaN is absent. ``values`` must not be empty.

    With ``weights`` (N,), in [0, 1], those of the weighted values.
    """
    absent = xp.isnan(values)
    keys = xp.where(absent, xp.inf, values)
    layout = sort_by_segment(xp, segments, keys)
    first, stop = layout.first, layout.stop
    keys = gather(xp, keys, layout.order)
    present = ~gather(xp, absent, layout.order)
    members = count(xp, present, first, stop)

    # Absent values sort behind the largest present one, or among its equals if that is infinite.
    lowest = gather(xp, keys, first)
    highest = gather(xp, keys, first + xp.maximum(members, xp.ones_like(members)) - 1)
    bounded = xp.isfinite(lowest) & xp.isfinite(highest)
    usable = present & bounded
    lowest = xp.where(bounded, lowest, 0.0)
    spread = xp.where(bounded, highest, 0.0) - lowest

    unit = (xp.where(usable, keys, 0.0) - lowest) / xp.where(spread > 0, spread, 1.0)
    unit = xp.where(usable, unit, 0.0)

    def total(terms: Array) -> Array:
        return exact_sum(
            xp, terms, lambda x: sum_between(xp, x, first, stop), bits=0, integer=first.dtype
        )

    if weights is None:
        size, weight = xp.astype(members, values.dtype), 1.0
    else:
        weight = xp.where(present, gather(xp, weights, layout.order), 0.0)
        size = total(weight)
    mean = total(weight * unit) / xp.where(size > 0, size, 1.0)
    deviation = xp.where(usable, unit - mean, 0.0)
    square_sum = total(weight * (deviation * deviation))
    deviation = xp.where(present & ~bounded, xp.nan, deviation) * spread
    of_sorted = Moments(deviation, lowest + mean * spread, spread, square_sum, size)
    return Moments(*(gather(xp, field, layout.inverse) for field in of_sorted))
