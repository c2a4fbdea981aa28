"""Means and deviations of segments of arbitrary floats, exact enough to never leak or explode.

Values are first brought to [0, 1] by their segment's own range. That makes the sums exact (see
:mod:`g2rpo._segments`), keeps 1e308 from overflowing, and makes equal values deviate by exactly 0.
"""

from __future__ import annotations

from typing import NamedTuple

from g2rpo._libraries import gather
from g2rpo._segments import count, exact_sum, sort_by_segment
from g2rpo._typing import Array, Namespace


class Moments(NamedTuple):
    """Statistics of each value's segment, shape (N,), in the order of the values.

    Attributes
    ----------
    deviation : array
        Distance from the segment's mean, in units of the range; 0 for an absent value, NaN in a
        segment that holds an infinity.
    half_range, half_lowest : array
        Half the segment's range and half its smallest value. Halves, so that they do not overflow.
    mean : array
        The mean's distance from the smallest value, in units of the range.
    square_sum : array
        Sum of the squared deviations.
    size : array
        Number of present values, floating point.
    """

    deviation: Array
    half_range: Array
    half_lowest: Array
    mean: Array
    square_sum: Array
    size: Array

    @property
    def half_deviation(self) -> Array:
        """Half the distance from the mean, in the unit of the values."""
        return self.deviation * self.half_range

    def half_std(self, xp: Namespace) -> Array:
        """Half the unbiased standard deviation; 0 for a single value."""
        freedom = xp.where(self.size > 1, self.size - 1.0, 1.0)
        return xp.sqrt(self.square_sum / freedom) * self.half_range


def moments(xp: Namespace, values: Array, segments: Array) -> Moments:
    """Return the moments of every segment; NaN is absent. ``values`` must not be empty."""
    absent = xp.isnan(values)
    keys = xp.where(absent, xp.inf, values)
    layout = sort_by_segment(xp, segments, keys)
    first, stop = layout.first, layout.stop
    keys = gather(xp, keys, layout.order)
    present = ~gather(xp, absent, layout.order)
    size = count(xp, present, first, stop)

    # Absent values sort behind the largest present one, or among its equals if that is infinite.
    half_lowest = 0.5 * gather(xp, keys, first)
    half_highest = 0.5 * gather(xp, keys, first + xp.maximum(size, xp.ones_like(size)) - 1)
    bounded = xp.isfinite(half_lowest) & xp.isfinite(half_highest)
    usable = present & bounded
    half_lowest = xp.where(bounded, half_lowest, 0.0)
    half_range = xp.where(bounded, half_highest, 0.0) - half_lowest

    unit = (0.5 * xp.where(usable, keys, 0.0) - half_lowest) / xp.where(
        half_range > 0, half_range, 1.0
    )
    unit = xp.where(usable, unit, 0.0)
    number = xp.astype(size, values.dtype)
    divisor = xp.where(size > 0, number, 1.0)
    mean = exact_sum(xp, unit, first, stop, bits=0) / divisor
    deviation = xp.where(usable, unit - mean, 0.0)
    square_sum = exact_sum(xp, deviation * deviation, first, stop, bits=0)
    deviation = xp.where(present & ~bounded, xp.nan, deviation)
    sorted_moments = Moments(deviation, half_range, half_lowest, mean, square_sum, number)
    return Moments(*(gather(xp, field, layout.inverse) for field in sorted_moments))
