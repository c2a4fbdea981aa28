"""Gaussian matching: the optimal transport of a segment's values onto N(0, 1).

An *absent* value is NaN: it takes no rank and gets 0. A *block* is a run of equal values in a
sorted segment. A segment *has signal* when its present values are not all equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from g2rpo._blocks import (
    MOST_COUNTED,
    Ties,
    as_columns,
    barycentres,
    count_columns,
    from_columns,
    midpoint_means,
    tabled_means,
)
from g2rpo._checks import (
    as_groups,
    labels_of,
    namespace_of,
    require_choice,
    require_positive,
    require_shape,
    working_dtype,
)
from g2rpo._components import rounding_margin, weighted_rewards, weights_if_components
from g2rpo._libraries import device_of, gather, is_readable
from g2rpo._segments import (
    Layout,
    count,
    differs_from_previous,
    run_bounds,
    segment_peak,
    sort_by_segment,
)
from g2rpo._typing import Array, Groups, Namespace


def match_gaussian(
    values: Array,
    segments: Groups | None = None,
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
    segments : array or int, optional
        Integer labels, shape (N,), in any order; or n, for segments of n consecutive values, which
        needs no sort of all values. One segment by default.
    ties : {"midpoint", "barycentre"}, optional
        ``"midpoint"`` averages the block's midpoint quantiles. ``"barycentre"`` takes the mean of
        N(0, 1) over the block's probability interval: the barycentric projection of the optimal
        transport of the empirical distribution to N(0, 1).
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

    Every segment is matched by itself, on any scale:

    >>> values = np.asarray([0.1, 300.0, 0.2, 100.0])
    >>> match_gaussian(values, np.asarray([0, 1, 0, 1])).round(4)
    array([-0.6745,  0.6745,  0.6745, -0.6745])
    """
    xp = namespace_of(values=values, segments=labels_of(segments))
    require_shape("values", values, ("N",))
    size = values.shape[0]
    segments = size if segments is None else as_groups(xp, "segments", segments, size)
    require_choice("ties", ties, ("midpoint", "barycentre"))
    if resolution is not None:
        require_positive("resolution", resolution)
    working, result = working_dtype(xp, "values", values)
    values = xp.astype(values, working, copy=False)
    matched, _ = match(xp, values, segments, ties, resolution)
    return xp.astype(matched, result, copy=False)


def has_signal(
    rewards: Array,
    groups: Groups,
    /,
    *,
    component_weights: Sequence[float] | Array | None = None,
) -> Array:
    """Return whether each rollout's group has signal: present rewards that are not all equal.

    Parameters
    ----------
    rewards : array
        Real, shape (N,), or (N, K) for K components that are added. NaN is absent.
    groups : array or int
        Integer prompt labels, shape (N,), in any order; or n, for groups of n consecutive
        rollouts.
    component_weights : sequence of float or array, optional
        Weights of the K components, shape (K,); ones by default.

    Returns
    -------
    array of bool
        Shape (N,), on the device of ``rewards``, the same for all rollouts of a group.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex or ``groups`` are not integers.
    ValueError
        If a shape is wrong, ``groups`` is a number that does not divide N, or there are weights
        without components.

    Notes
    -----
    A group of which at most one reward is present has none. Sums of components that differ by no
    more than the rounding of their terms are equal, as in :func:`g2rpo.gaussian_advantages`.
    Nothing waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> rewards = np.asarray([0.0, 1.0, 0.5, 0.5, 0.5, np.nan])
    >>> has_signal(rewards, 2)
    array([ True,  True, False, False, False, False])
    """
    xp = namespace_of(rewards=rewards, groups=labels_of(groups))
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    size = rewards.shape[0]
    groups = as_groups(xp, "groups", groups, size)
    working, result = working_dtype(xp, "rewards", rewards)
    values, margin = xp.astype(rewards, working, copy=False), None
    weights = weights_if_components(xp, component_weights, values)
    if size == 0:
        return xp.zeros(0, dtype=xp.bool, device=device_of(rewards))
    if weights is not None:
        values, margin = summed(xp, values, weights, groups, result)
    blocks = _sorted_blocks(xp, values, groups, margin)
    return gather(xp, blocks.signal, blocks.layout.inverse)


def summed(
    xp: Namespace, rewards: Array, weights: Array, groups: Groups, dtype: Array
) -> tuple[Array, Array]:
    """Return weighted sums (N,) of rewards (N, K), and the largest rounding margin of each group.

    ``dtype`` is the one in which the rewards were given.
    """
    total, sizes = weighted_rewards(xp, rewards, weights)
    margin = rounding_margin(xp, sizes, rewards.shape[1], dtype)
    return total, segment_peak(xp, margin, groups)


def match(
    xp: Namespace,
    values: Array,
    segments: Groups,
    ties: Ties,
    resolution: float | None,
    margin: Array | None = None,
) -> tuple[Array, Array]:
    """Return the matched values and, for each, whether it is present in a segment with signal.

    With ``margin`` (N,), the same for a whole segment, neighbours in the order of values that are
    no farther apart than that belong to one block.
    """
    if values.shape[0] == 0:
        return values, xp.zeros_like(values, dtype=xp.bool)
    matched, has_signal = match_columns(xp, values, segments, ties, resolution, margin)
    return from_columns(xp, matched), from_columns(xp, has_signal)


def match_columns(
    xp: Namespace,
    values: Array,
    segments: Groups,
    ties: Ties,
    resolution: float | None,
    margin: Array | None = None,
) -> tuple[Array, Array]:
    """Return the results of ``match`` as arrays (members, B) with one column per segment, B > 0.

    With labels, every value is a column of its own.
    """
    members = segments if isinstance(segments, int) else 1
    if resolution is not None:
        values = _round_to(xp, values, resolution, margin)
    if isinstance(segments, int) and members <= MOST_COUNTED and margin is None:
        return count_columns(xp, values, members, ties)
    matched, has_signal = _match_sorted(xp, values, segments, ties, margin)
    return as_columns(xp, matched, members), as_columns(xp, has_signal, members)


def _match_sorted(
    xp: Namespace, values: Array, segments: Groups, ties: Ties, margin: Array | None
) -> tuple[Array, Array]:
    layout, present, size, first, stop, signal = _sorted_blocks(xp, values, segments, margin)
    has_signal = present & signal
    lower, upper = first - layout.first, stop - layout.first
    if is_readable(values) and int(xp.max(size)) <= MOST_COUNTED:
        matched = tabled_means(xp, size, lower, size - upper, has_signal, values, ties)
    elif ties == "barycentre":
        matched = barycentres(xp, lower, upper, size, has_signal, values.dtype)
    else:
        # The sorted positions hold the ranks. Those of absent values are never summed.
        number = values.shape[0]
        rank = xp.arange(number, dtype=first.dtype, device=device_of(first)) - layout.first
        stop = xp.where(has_signal, stop, first)
        matched = midpoint_means(xp, rank, size, first, stop, values.dtype, number)
    matched = xp.where(has_signal, matched, 0.0)
    return gather(xp, matched, layout.inverse), gather(xp, has_signal, layout.inverse)


class _Blocks(NamedTuple):
    """For each sorted position: presence, segment size, bounds of the block, and signal."""

    layout: Layout
    present: Array
    size: Array
    first: Array
    stop: Array
    signal: Array


def _sorted_blocks(xp: Namespace, values: Array, segments: Groups, margin: Array | None) -> _Blocks:
    # Absent values sort as infinity, possibly among infinite ones. Equal values share a result, so
    # only the number of present ones matters.
    absent = xp.isnan(values)
    keys = xp.where(absent, xp.inf, values)
    layout = sort_by_segment(xp, segments, keys)
    present = ~gather(xp, absent, layout.order)
    size = count(xp, present, layout.first, layout.stop)

    keys = gather(xp, keys, layout.order)
    opens = differs_from_previous(xp, keys)
    if margin is not None:
        opens = opens & ~_near_previous(xp, keys, gather(xp, margin, layout.order))
    first, stop = run_bounds(xp, layout.labels_differ | opens)
    end = layout.first + size
    stop = xp.minimum(stop, end)
    # A segment has signal if its first block is not the whole of it.
    signal = gather(xp, stop, layout.first) < end
    return _Blocks(layout, present, size, first, stop, signal)


def _near_previous(xp: Namespace, keys: Array, margin: Array) -> Array:
    """Return whether each sorted key is within ``margin`` of the one before it."""
    finite = xp.isfinite(keys)
    # Halves, because a difference of large keys overflows.
    half = 0.5 * xp.where(finite, keys, 0.0)
    near = finite[1:] & finite[:-1] & (half[1:] - half[:-1] <= 0.5 * margin[1:]) & (margin[1:] > 0)
    return xp.concat([xp.zeros_like(finite[:1]), near])


def _round_to(xp: Namespace, values: Array, resolution: float, margin: Array | None) -> Array:
    """Round to multiples of ``resolution``, except values of a floating-point spacing above it.

    With ``margin``, values within that margin below the middle of two multiples are rounded up in
    magnitude: equal sums stay equal if rounding errors put one of them below the middle.
    """
    coarse = ~(xp.abs(values) * xp.finfo(values.dtype).eps < resolution)
    fine = xp.where(coarse, 0.0, values) / resolution
    if margin is None:
        multiple = xp.round(fine)
    else:
        multiple = xp.sign(fine) * xp.floor(xp.abs(fine) + 0.5 + margin / resolution)
    return xp.where(coarse, values, multiple * resolution)
