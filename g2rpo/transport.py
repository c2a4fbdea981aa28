"""Gaussian matching: the optimal transport of a segment's values onto N(0, 1).

What every function here means by its words: *absent* is a NaN, which takes no rank and gets 0; a
*block* is a run of equal values in a sorted segment; a segment *has signal* when its present
values are not all equal.
"""

from __future__ import annotations

from typing import Literal

from g2rpo._checks import (
    namespace_of,
    require_choice,
    require_labels,
    require_positive,
    require_shape,
    working_dtype,
)
from g2rpo._libraries import device_of, gather
from g2rpo._normal import mean_between, quantile_of_ratio
from g2rpo._segments import count, differs_from_previous, exact_sum, run_bounds, sort_by_segment
from g2rpo._typing import Array, Namespace

Ties = Literal["midpoint", "barycentre"]

#: No midpoint quantile reaches 2**QUANTILE_BITS in magnitude: 8 would take 10**15 values.
QUANTILE_BITS = 3


def match_gaussian(
    values: Array,
    segments: Array | None = None,
    /,
    *,
    ties: Ties = "midpoint",
    resolution: float | None = None,
) -> Array:
    r"""Map the values of every segment onto the quantiles of N(0, 1), keeping their order.

    The value of rank r among n becomes :math:`\Phi^{-1}((r - 1/2) / n)`, and every member of a
    block of equal values gets the mean of the block's quantiles. This is the map that minimises
    the squared transport cost from the segment's values to the n midpoint quantiles.

    Parameters
    ----------
    values : array
        Real, shape (N,). Infinities are legal extreme values. NaN is absent.
    segments : array, optional
        Integer labels, shape (N,), in any order; one segment by default.
    ties : {"midpoint", "barycentre"}, optional
        ``"midpoint"`` averages the block's midpoint quantiles. ``"barycentre"`` takes the mean of
        N(0, 1) over the block's probability interval, which is what the transport of the
        empirical distribution to N(0, 1) itself sends the block to.
    resolution : float, optional
        Round values to multiples of this before ranking, in the unit of ``values``, so that
        differences too small to matter become ties.

    Returns
    -------
    array
        Shape (N,), on the device of ``values`` and of its dtype (the default floating dtype for
        integers and booleans).

    Raises
    ------
    TypeError
        If an argument is no array, ``values`` is complex or ``segments`` are not integers.
    ValueError
        If a shape is wrong, ``ties`` is unknown or ``resolution`` is not finite and positive.

    Notes
    -----
    Equal blocks, of the same ranks in segments of the same size, get bit-equal results wherever
    they stand. Mirrored blocks get exactly opposite results, and a block symmetric about the
    middle, such as a whole segment of equal values, gets exactly 0. Half precision is computed in
    float32. The gradient is zero where it exists: ranks are piecewise constant. All shapes are
    static and nothing waits for the device; sorting dominates the cost.

    References
    ----------
    G²RPO, arXiv:2604.08539, Algorithm 1. Van der Waerden scores, in statistics.

    Examples
    --------
    >>> import numpy as np
    >>> match_gaussian(np.asarray([0.0, 0.0, 0.0, 0.0, 1.0])).round(4)
    array([-0.3204, -0.3204, -0.3204, -0.3204,  1.2816])

    Every segment is matched by itself, whatever the scale of its values:

    >>> values = np.asarray([0.1, 300.0, 0.2, 100.0])
    >>> match_gaussian(values, np.asarray([0, 1, 0, 1])).round(4)
    array([-0.6745,  0.6745,  0.6745, -0.6745])
    """
    xp = namespace_of(values=values, segments=segments)
    require_shape("values", values, ("N",))
    if segments is not None:
        require_labels(xp, "segments", segments, values.shape[0])
    require_choice("ties", ties, ("midpoint", "barycentre"))
    if resolution is not None:
        require_positive("resolution", resolution)
    working, result = working_dtype(xp, "values", values)
    matched, _ = match(xp, xp.astype(values, working), segments, ties, resolution)
    return xp.astype(matched, result)


def match(
    xp: Namespace, values: Array, segments: Array | None, ties: Ties, resolution: float | None
) -> tuple[Array, Array]:
    """Return the matched values and, for each, whether it is present in a segment with signal."""
    size = values.shape[0]
    if size == 0:
        return values, xp.zeros_like(values, dtype=xp.bool)
    if segments is None:
        segments = xp.zeros(size, dtype=xp.int32, device=device_of(values))
    if resolution is not None:
        values = _round_to(xp, values, resolution)

    # An absent value sorts as infinity, among any true ones. It needs no place of its own: equal
    # values share a result, so only the number of those that are present counts.
    absent = xp.isnan(values)
    keys = xp.where(absent, xp.inf, values)
    layout = sort_by_segment(xp, segments, keys)
    present = ~gather(xp, absent, layout.order)
    size_present = count(xp, present, layout.first, layout.stop)

    opens = layout.labels_differ | differs_from_previous(xp, gather(xp, keys, layout.order))
    first, stop = run_bounds(xp, opens)
    stop = xp.minimum(stop, layout.first + size_present)
    members = stop - first

    present = present & (members > 0)
    has_signal = present & (members < size_present)
    mean = _block_means(xp, layout.first, size_present, first, stop, has_signal, ties, values.dtype)
    matched = xp.where(has_signal, mean, 0.0)
    return gather(xp, matched, layout.inverse), gather(xp, has_signal, layout.inverse)


def _block_means(
    xp: Namespace,
    origin: Array,
    size: Array,
    first: Array,
    stop: Array,
    wanted: Array,
    ties: Ties,
    dtype: Array,
) -> Array:
    """Return what each sorted position's block [first, stop) gets; arbitrary unless ``wanted``."""
    if ties == "barycentre":
        lower = xp.where(wanted, first - origin, 0)
        upper = xp.where(wanted, stop - origin, 1)
        return mean_between(xp, lower, upper, xp.where(wanted, size, 1), dtype)
    # The block's positions hold its ranks. Those that belong to absent values are never summed.
    rank = xp.arange(first.shape[0], dtype=first.dtype, device=device_of(first)) - origin
    ranked = rank < size
    numerator = xp.where(ranked, 2 * rank + 1, 1)
    denominator = xp.where(ranked, 2 * size, 2)
    largest = 2 * first.shape[0]
    quantiles = quantile_of_ratio(xp, numerator, denominator, dtype, largest=largest)
    total = exact_sum(xp, quantiles, first, xp.where(wanted, stop, first), bits=QUANTILE_BITS)
    return total / xp.astype(xp.where(wanted, stop - first, 1), dtype)


def _round_to(xp: Namespace, values: Array, resolution: float) -> Array:
    """Round to multiples of ``resolution``, except values spaced wider than that themselves."""
    coarse = ~(xp.abs(values) * xp.finfo(values.dtype).eps < resolution)
    fine = xp.where(coarse, 0.0, values)
    return xp.where(coarse, values, xp.round(fine / resolution) * resolution)
