"""Length targets from data: quantiles of the lengths of right responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from g2rpo._checks import (
    namespace_of,
    require_floating,
    require_labels,
    require_shape,
    working_dtype,
)
from g2rpo._libraries import device_of, gather
from g2rpo._segments import count, sort_by_segment
from g2rpo._typing import Array

#: minimum, low, high, maximum as quantiles of the lengths of right responses.
QUANTILES = (0.02, 0.25, 0.75, 0.98)


def length_quantiles(
    lengths: Array,
    right: Array,
    tasks: Array,
    /,
    num_tasks: int,
    *,
    quantiles: Sequence[float] = QUANTILES,
) -> tuple[Array, Array]:
    """Return each task's length thresholds: quantiles of the lengths of its right responses.

    Parameters
    ----------
    lengths : array
        Real, shape (N,), in tokens.
    right : array
        bool, shape (N,): the responses to learn from.
    tasks : array
        Integer labels 0 .. num_tasks - 1, shape (N,); others belong to no task.
    num_tasks : int
        Number of tasks, at least 1.
    quantiles : sequence of four floats, optional
        Increasing, in [0, 1]: where minimum, low, high and maximum stand.

    Returns
    -------
    thresholds : array
        Shape (num_tasks, 4), in tokens, interpolated linearly; 0 for a task without a right
        response.
    samples : array
        Integers, shape (num_tasks,): number of right responses of each task.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If shapes differ, ``num_tasks`` is not positive, or the quantiles do not increase.

    Examples
    --------
    >>> import numpy as np
    >>> lengths, right = np.asarray([10, 20, 30, 99]), np.asarray([True, True, True, False])
    >>> length_quantiles(lengths, right, np.zeros(4, int), 1, quantiles=(0, 0.25, 0.5, 1))
    (array([[10., 15., 20., 30.]]), array([3]))
    """
    xp = namespace_of(lengths=lengths, right=right, tasks=tasks)
    require_shape("lengths", lengths, ("N",))
    require_shape("right", right, lengths.shape)
    if not xp.isdtype(right.dtype, "bool"):
        raise TypeError(f"right must be boolean, got dtype {right.dtype}")
    require_labels(xp, "tasks", tasks, lengths.shape[0])
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
    _check_quantiles(quantiles)
    working, result = working_dtype(xp, "lengths", lengths)
    lengths = xp.astype(lengths, working)
    if lengths.shape[0] == 0:
        nothing = xp.zeros(num_tasks, dtype=tasks.dtype, device=device_of(lengths))
        return xp.zeros((num_tasks, 4), dtype=result, device=device_of(lengths)), nothing

    keys = xp.where(right, lengths, xp.inf)
    layout = sort_by_segment(xp, tasks, keys)
    labels, keys = gather(xp, tasks, layout.order), gather(xp, keys, layout.order)
    samples = count(xp, gather(xp, right, layout.order), layout.first, layout.stop)
    codes = xp.arange(num_tasks, dtype=tasks.dtype, device=device_of(tasks))
    place = xp.clip(xp.searchsorted(labels, codes), 0, lengths.shape[0] - 1)
    samples = xp.where(gather(xp, labels, place) == codes, gather(xp, samples, place), 0)

    last = xp.maximum(samples, xp.ones_like(samples)) - 1
    first = gather(xp, layout.first, place)
    keys = xp.where(xp.isfinite(keys), keys, 0.0)
    columns = []
    for quantile in quantiles:
        position = quantile * xp.astype(last, working)
        below = xp.floor(position)
        index = first + xp.minimum(xp.astype(below, first.dtype), last)
        lower = gather(xp, keys, index)
        upper = gather(xp, keys, xp.minimum(index + 1, first + last))
        between = lower + (upper - lower) * (position - below)
        columns.append(xp.where(samples > 0, between, 0.0))
    return xp.astype(xp.stack(columns, axis=1), result), samples


def calibrate_lengths(
    thresholds: Array,
    lengths: Array,
    right: Array,
    tasks: Array,
    /,
    *,
    quantiles: Sequence[float] = QUANTILES,
    decay: float = 0.9,
    max_change: float = 0.1,
    min_samples: int = 8,
) -> Array:
    """Move every task's thresholds towards the quantiles of this batch's right responses.

    Parameters
    ----------
    thresholds : array
        The thresholds so far, floating point, shape (num_tasks, 4), in tokens, such as those of
        :meth:`g2rpo.LengthTargets.table`: the ``targets`` of :func:`g2rpo.length_reward` once
        indexed with the task labels. An infinite threshold stays infinite. NaN is a task without
        thresholds: the first batch with enough right responses sets them. Save them with the model.
    lengths, right, tasks : array
        As in :func:`length_quantiles`.
    quantiles : sequence of four floats, optional
        As in :func:`length_quantiles`.
    decay : float, optional
        Weight of the previous thresholds, in [0, 1].
    max_change : float, optional
        Largest relative change of a threshold in one update; one token is always allowed.
    min_samples : int, optional
        A task with fewer right responses in the batch keeps its thresholds.

    Returns
    -------
    array
        The new thresholds; ordered if the old ones were.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a shape is wrong or an option is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> thresholds, lengths = np.asarray([[0.0, 10.0, 50.0, 100.0]]), np.full(20, 40)
    >>> calibrate_lengths(thresholds, lengths, lengths > 0, np.zeros(20, int))
    array([[ 1., 11., 49., 94.]])
    """
    xp = namespace_of(thresholds=thresholds, lengths=lengths)
    require_floating(xp, "thresholds", thresholds)
    require_shape("thresholds", thresholds, ("num_tasks", 4))
    for name, value in (("decay", decay), ("max_change", max_change)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value!r}")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1, got {min_samples!r}")
    seen, samples = length_quantiles(
        lengths, right, tasks, thresholds.shape[0], quantiles=quantiles
    )
    seen = xp.astype(seen, thresholds.dtype)
    fixed = xp.isinf(thresholds) | xp.expand_dims(samples < min_samples, axis=1)
    unset = xp.isnan(thresholds)
    old = xp.where(fixed | unset, 0.0, thresholds)
    step = xp.maximum(max_change * old, xp.ones_like(old))
    # Bounds that increase with the threshold keep ordered thresholds in order.
    averaged = decay * old + (1.0 - decay) * seen
    updated = xp.minimum(xp.maximum(averaged, old - step), old + step)
    return xp.where(fixed, thresholds, xp.where(unset, seen, updated))


def _check_quantiles(quantiles: Sequence[float]) -> None:
    increasing = all(a <= b for a, b in pairwise(quantiles))
    if len(quantiles) != 4 or not increasing or not 0 <= quantiles[0] <= quantiles[-1] <= 1:
        raise ValueError(
            f"quantiles must be four increasing numbers in [0, 1], got {tuple(quantiles)}"
        )
