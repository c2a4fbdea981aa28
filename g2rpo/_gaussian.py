"""Gaussian advantages: matching inside each prompt's group, then a stage across each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from g2rpo._checks import (
    namespace_of,
    require_choice,
    require_labels,
    require_positive,
    require_shape,
    working_dtype,
)
from g2rpo._components import weighted_rewards, weighted_sum, weights_if_components
from g2rpo._libraries import device_of, gather
from g2rpo._segments import count, exact_sum, segment_peak, sort_by_segment
from g2rpo._typing import Array, Namespace
from g2rpo.transport import QUANTILE_BITS, Ties, match

TaskStage = Literal["standardize", "match", "match-all"]


def gaussian_advantages(
    rewards: Array,
    groups: Array,
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
    groups : array
        Integer prompt labels, shape (N,). A group's rollouts belong to one task.
    tasks : array, optional
        Integer task labels, shape (N,); one task by default.
    task_stage : {"standardize", "match", "match-all", None}, optional
        See above.
    component_weights : sequence of float or array, optional
        Weights of the K components, shape (K,); ones by default.
    decoupled : bool, optional
        Match every component inside its group and add the results with the weights, rather than
        add the rewards first. A NaN is absent from its own component only.
    ties, resolution
        As in :func:`g2rpo.match_gaussian`. Both apply inside the group; the task stage's own
        matching uses ``ties`` only.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex or labels are not integers.
    ValueError
        If a shape is wrong, an option is unknown, or there are weights without components.

    Notes
    -----
    Summing components counts a NaN as 0 unless all components are NaN. The result does not
    depend on the order of the rollouts or on other tasks, to the last bit.

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
    xp = namespace_of(rewards=rewards, groups=groups, tasks=tasks)
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    size = rewards.shape[0]
    require_labels(xp, "groups", groups, size)
    if tasks is None:
        tasks = xp.zeros(size, dtype=xp.int32, device=device_of(rewards))
    require_labels(xp, "tasks", tasks, size)
    require_choice("task_stage", task_stage, ("standardize", "match", "match-all", None))
    require_choice("ties", ties, ("midpoint", "barycentre"))
    if resolution is not None:
        require_positive("resolution", resolution)
    working, result = working_dtype(xp, "rewards", rewards)
    rewards = xp.astype(rewards, working)
    weights = weights_if_components(xp, component_weights, rewards)
    if size == 0:
        return xp.zeros(0, dtype=result, device=device_of(rewards))

    if weights is None:
        advantages, has_signal = match(xp, rewards, groups, ties, resolution)
        present = ~xp.isnan(rewards)
    elif decoupled:
        columns = [rewards[:, k] for k in range(rewards.shape[1])]
        matched = [match(xp, column, groups, ties, resolution)[0] for column in columns]
        advantages = weighted_sum(xp, matched, weights)
        present = ~xp.all(xp.isnan(rewards), axis=1)
        has_signal = present & (segment_peak(xp, xp.abs(advantages), groups) > 0)
    else:
        summed = weighted_rewards(xp, rewards, weights)
        advantages, has_signal = match(xp, summed, groups, ties, resolution)
        present = ~xp.isnan(summed)

    if task_stage == "standardize":
        weighted = decoupled and weights is not None
        advantages = _standardise(xp, advantages, has_signal, tasks, weighted)
    elif task_stage is not None:
        taking_part = present if task_stage == "match-all" else has_signal
        candidates = xp.where(taking_part, advantages, xp.nan)
        advantages, _ = match(xp, candidates, tasks, ties, None)
    return xp.astype(advantages, result)


def _standardise(
    xp: Namespace, values: Array, has_signal: Array, tasks: Array, weighted: bool
) -> Array:
    """Divide by each task's root mean square over ``has_signal``.

    No mean is subtracted: it is 0 but for rounding, and taking the rounding away would cost the
    exact zeros and signs.
    """
    bits = 2 * QUANTILE_BITS
    if weighted:
        # The weights may be of any size: bring each task's largest value to 1 first.
        peak = segment_peak(xp, xp.abs(values), tasks)
        values, bits = values / xp.where(peak > 0, peak, 1.0), 0
    layout = sort_by_segment(xp, tasks)
    squares = gather(xp, xp.where(has_signal, values * values, 0.0), layout.order)
    samples = count(xp, gather(xp, has_signal, layout.order), layout.first, layout.stop)
    total = exact_sum(xp, squares, layout.first, layout.stop, bits=bits)
    samples = xp.maximum(samples, xp.ones_like(samples))
    root = gather(xp, xp.sqrt(total / xp.astype(samples, values.dtype)), layout.inverse)
    active = has_signal & (root > 0)
    return xp.where(active, values / xp.where(active, root, 1.0), 0.0)
