"""Gaussian advantages: matching inside each prompt's group, then a stage across each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from g2rpo._blocks import QUANTILE_BITS, Ties, as_columns, from_columns
from g2rpo._checks import (
    as_groups,
    labels_of,
    namespace_of,
    require_choice,
    require_labels,
    require_positive,
    require_shape,
    working_dtype,
)
from g2rpo._components import rounding_margin, weighted_sum, weights_if_components
from g2rpo._libraries import (
    device_of,
    divide_columns,
    gather,
    is_readable,
    places_of,
    sum_by_place,
)
from g2rpo._segments import exact_sum, segment_peak
from g2rpo._typing import Array, Groups, Namespace
from g2rpo.transport import has_signal, match, match_columns, summed

TaskStage = Literal["standardize", "match", "match-all"]


def gaussian_advantages(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    /,
    *,
    task_stage: TaskStage | None = "standardize",
    component_weights: Sequence[float] | Array | None = None,
    decoupled: bool = False,
    ties: Ties = "midpoint",
    resolution: float | None = None,
) -> Array:
    r"""Return G²RPO's advantages: rewards matched to N(0, 1) in each group, then per task.

    The task stage decides what happens between a task's groups in the batch:

    - ``"standardize"`` divides by the task's root mean square over the samples of groups with
      signal. Signs, zeros and each prompt's zero sum survive (the mean is 0 by construction),
      and every task has variance 1, so that none dominates the gradient.
    - ``"match"`` matches once more, over the task's groups with signal. Signs and zero sums may
      change.
    - ``"match-all"`` matches once more over everything, as the authors' released code does. A
      group without signal then gets a non-zero advantage.
    - ``None`` leaves the matched values as they are.

    Parameters
    ----------
    rewards : array
        Real, shape (N,), or (N, K) for K reward components.
    groups : array or int
        Integer prompt labels, shape (N,), in any order; or n, for groups of n consecutive
        rollouts, which gives the same bits and needs no sort of all rollouts. A group's rollouts
        belong to one task.
    tasks : array, optional
        Integer task labels, shape (N,); one task by default.
    task_stage : {"standardize", "match", "match-all", None}, optional
        See above.
    component_weights : sequence of float or array, optional
        Weights of the K components, shape (K,); ones by default.
    decoupled : bool, optional
        Match every component inside its group and add the results with the weights, rather than
        add the rewards first. A NaN is absent from its own component only.
    ties : {"midpoint", "barycentre"}, optional
        As in :func:`g2rpo.match_gaussian`, inside the group and in the task stage's own matching.
    resolution : float, optional
        As in :func:`g2rpo.match_gaussian`, in reward units; inside the group only.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex or labels are not integers.
    ValueError
        If a shape is wrong, ``groups`` is a number that does not divide N, an option is unknown,
        or there are weights without components.

    Notes
    -----
    Summing components counts a NaN as 0 unless all components are NaN. Sums that differ by no more
    than the rounding of their terms are ties: .1 + .2 and .3 + 0. The result does not depend on the
    order of the rollouts, of components of equal weight, or on other tasks, to the last bit.

    References
    ----------
    G²RPO, arXiv:2604.08539. Decoupled normalisation: GDPO, arXiv:2601.05242.

    Examples
    --------
    Two prompts of one task; the second has no signal:

    >>> import numpy as np
    >>> rewards = np.asarray([0.0, 0.0, 1.0, 1.0, 0.7, 0.7, 0.7, 0.7])
    >>> groups = np.asarray([0, 0, 0, 0, 1, 1, 1, 1])
    >>> gaussian_advantages(rewards, groups)
    array([-1., -1.,  1.,  1.,  0.,  0.,  0.,  0.])
    >>> gaussian_advantages(rewards, groups, task_stage=None).round(4)
    array([-0.7345, -0.7345,  0.7345,  0.7345,  0.    ,  0.    ,  0.    ,  0.    ])
    """
    xp = namespace_of(rewards=rewards, groups=labels_of(groups), tasks=tasks)
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    size = rewards.shape[0]
    groups = as_groups(xp, "groups", groups, size)
    if tasks is None:
        tasks = xp.zeros(size, dtype=xp.int32, device=device_of(rewards))
    require_labels(xp, "tasks", tasks, size)
    require_choice("task_stage", task_stage, ("standardize", "match", "match-all", None))
    require_choice("ties", ties, ("midpoint", "barycentre"))
    if resolution is not None:
        require_positive("resolution", resolution)
    working, result = working_dtype(xp, "rewards", rewards)
    rewards = xp.astype(rewards, working, copy=False)
    weights = weights_if_components(xp, component_weights, rewards)
    if size == 0:
        return xp.zeros(0, dtype=result, device=device_of(rewards))

    members = groups if isinstance(groups, int) else 1
    weighted = decoupled and weights is not None
    if weighted:
        ranked, margin = _decoupled(xp, rewards, weights, groups, ties, resolution)
        present = ~xp.isnan(ranked)
        advantages = as_columns(xp, xp.where(present, ranked, 0.0), members)
        with_signal = as_columns(xp, present & has_signal(ranked, groups), members)
    else:
        ranked, margin = rewards, None
        if weights is not None:
            ranked, margin = summed(xp, rewards, weights, groups, result)
        advantages, with_signal = match_columns(xp, ranked, groups, ties, resolution, margin)

    if task_stage == "standardize":
        bits = 2 * QUANTILE_BITS
        if weighted:
            # The weights may be of any size: bring each task's largest value to 1 first.
            peak = segment_peak(xp, xp.abs(from_columns(xp, advantages)), tasks)
            advantages = advantages / as_columns(xp, xp.where(peak > 0, peak, 1.0), members)
            bits = 0
        advantages = _standardise(xp, advantages, with_signal, tasks, bits)
    advantages = from_columns(xp, advantages)
    if task_stage in ("match", "match-all"):
        of_signal = task_stage == "match"
        taking_part = from_columns(xp, with_signal) if of_signal else ~xp.isnan(ranked)
        candidates = xp.where(taking_part, advantages, xp.nan)
        margin = segment_peak(xp, margin, tasks) if weighted else None
        advantages, _ = match(xp, candidates, tasks, ties, None, margin)
    return xp.astype(advantages, result, copy=False)


def _decoupled(
    xp: Namespace,
    rewards: Array,
    weights: Array,
    groups: Groups,
    ties: Ties,
    resolution: float | None,
) -> tuple[Array, Array]:
    """Return weighted sums (N,) of separately matched components, and their rounding margins (N,).

    A sum is NaN where all components are absent. Two sums within the margin count as equal.
    """
    columns = [rewards[:, k] for k in range(rewards.shape[1])]
    matched = [match(xp, column, groups, ties, resolution)[0] for column in columns]
    total, sizes = weighted_sum(xp, xp.stack(matched, axis=1), weights)
    margin = rounding_margin(xp, sizes, len(columns), rewards.dtype)
    # Components that cancel leave only rounding errors.
    total = xp.where(xp.abs(total) <= segment_peak(xp, margin, groups), 0.0, total)
    return xp.where(xp.all(xp.isnan(rewards), axis=1), xp.nan, total), margin


def _standardise(
    xp: Namespace, values: Array, with_signal: Array, tasks: Array, bits: int
) -> Array:
    """Divide columns (members, B), one per group, by each task's root mean square.

    The mean square is taken over ``with_signal``; elsewhere ``values`` are 0. Their magnitude is at
    most 2**bits. No mean is subtracted: it is 0 up to rounding, and subtracting the rounding error
    would change exact zeros and signs.
    """
    members, columns = values.shape
    places, number = places_of(xp, _one_of_each_row(xp, tasks, members))

    # Integers add up to the same in any order: within groups first.
    def total(integers: Array) -> Array:
        return sum_by_place(xp, xp.sum(integers, axis=0, dtype=integers.dtype), places, number)

    samples = total(xp.astype(with_signal, places.dtype))
    sums = exact_sum(
        xp, values * values, total, bits=bits, integer=places.dtype, size=members * columns
    )
    samples = xp.maximum(samples, xp.ones_like(samples))
    root = xp.sqrt(sums / xp.astype(samples, values.dtype))
    return divide_columns(xp, values, gather(xp, xp.where(root > 0, root, 1.0), places))


def _one_of_each_row(xp: Namespace, tasks: Array, members: int) -> Array:
    """Return the task of each group of ``members`` consecutive rollouts."""
    if members == 1:
        return tasks
    rows = xp.reshape(tasks, (-1, members))
    if is_readable(tasks) and bool(xp.any(rows != rows[:, :1])):
        raise ValueError(
            f"tasks must be the same for all rollouts of a group, {members} consecutive ones, "
            "but some differ: give groups as labels, or tasks in the order of the groups"
        )
    return rows[:, 0]
