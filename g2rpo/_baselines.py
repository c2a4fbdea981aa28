"""The estimators that Gaussian matching is compared with: GRPO, Dr.GRPO, RLOO and GDPO.

A NaN reward is absent, as everywhere: it gets 0 and enters no mean. An infinite reward has no
mean: its whole group, and nothing else, becomes NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from g2rpo._checks import (
    as_groups,
    labels_of,
    namespace_of,
    require_choice,
    require_positive,
    require_shape,
    working_dtype,
)
from g2rpo._components import as_weights, weighted_sum
from g2rpo._libraries import device_of
from g2rpo._moments import SHRINK, Moments, moments
from g2rpo._typing import Array, Groups, Namespace

Scale: TypeAlias = Literal["group", "batch", "none"]


def grpo_advantages(
    rewards: Array, groups: Groups, /, *, scale: Scale = "group", epsilon: float = 1e-6
) -> Array:
    r"""Return GRPO's advantages: the reward's distance from its group's mean, rescaled.

    .. math:: A = (R - \mathrm{mean}_{group}) / (\mathrm{std} + \epsilon)

    Parameters
    ----------
    rewards : array
        Real, shape (N,). NaN is absent.
    groups : array or int
        Integer prompt labels, shape (N,); or n, for groups of n consecutive rollouts.
    scale : {"group", "batch", "none"}, optional
        Whose unbiased standard deviation divides: the group's, the whole batch's, or none, which
        is Dr.GRPO.
    epsilon : float, optional
        Added to the standard deviation, in reward units.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex or ``groups`` are not integers.
    ValueError
        If a shape is wrong, ``scale`` is unknown or ``epsilon`` is negative or not finite.

    Notes
    -----
    The variance is computed from centred values. Groups without signal, single responses among
    them, get exactly 0. An infinite reward makes its group NaN (the batch, with ``"batch"``).

    References
    ----------
    GRPO, arXiv:2402.03300; Dr.GRPO, arXiv:2503.20783.

    Examples
    --------
    >>> import numpy as np
    >>> rewards = np.asarray([0.0, 1.0, 1.0, 5.0])
    >>> grpo_advantages(rewards, np.asarray([0, 0, 0, 1])).round(4)
    array([-1.1547,  0.5773,  0.5773,  0.    ])
    >>> grpo_advantages(rewards, np.asarray([0, 0, 0, 1]), scale="none").round(4)
    array([-0.6667,  0.3333,  0.3333,  0.    ])
    """
    xp, values, groups, result = prepare(rewards, groups)
    require_choice("scale", scale, ("group", "batch", "none"))
    require_positive("epsilon", epsilon, zero=True)
    if values.shape[0] == 0:
        return xp.astype(values, result)
    group = moments(xp, values, groups)
    if scale == "none":
        advantages = group.deviation / SHRINK
    else:
        wider = group if scale == "group" else moments(xp, values, values.shape[0])
        advantages = standard_score(xp, group, wider, epsilon)
    return xp.astype(advantages, result)


def rloo_advantages(rewards: Array, groups: Groups, /) -> Array:
    r"""Return RLOO's advantages: the reward minus the mean of the others in its group.

    Parameters
    ----------
    rewards : array
        Real, shape (N,). NaN is absent.
    groups : array or int
        Integer prompt labels, shape (N,); or n, for groups of n consecutive rollouts.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``; 0 for a single response.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex or ``groups`` are not integers.
    ValueError
        If a shape is wrong.

    Notes
    -----
    Computed as n / (n - 1) times the distance from the group's mean, which is the same.

    References
    ----------
    Back to basics, arXiv:2402.14740.

    Examples
    --------
    >>> import numpy as np
    >>> rloo_advantages(np.asarray([0.0, 1.0, 1.0, 5.0]), np.asarray([0, 0, 0, 1])).round(4)
    array([-1. ,  0.5,  0.5,  0. ])
    """
    xp, values, groups, result = prepare(rewards, groups)
    if values.shape[0] == 0:
        return xp.astype(values, result)
    group = moments(xp, values, groups)
    others = xp.where(group.size > 1, group.size - 1.0, 1.0)
    return xp.astype(group.deviation / SHRINK * (group.size / others), result)


def gdpo_advantages(
    rewards: Array,
    groups: Groups,
    /,
    *,
    component_weights: Sequence[float] | Array | None = None,
    epsilon: float = 1e-6,
) -> Array:
    r"""Return GDPO's advantages: components normalised by themselves, added, normalised again.

    .. math:: A = \sum_c w_c (R_c - \mathrm{mean}_{group}) / (\mathrm{std}_{group} + \epsilon)
              \qquad A \leftarrow (A - \mathrm{mean}_{batch}) / (\mathrm{std}_{batch} + \epsilon)

    Parameters
    ----------
    rewards : array
        Real, shape (N, K), or (N,) for one component. NaN is absent from its component.
    groups : array or int
        Integer prompt labels, shape (N,); or n, for groups of n consecutive rollouts.
    component_weights : sequence of float or array, optional
        Weights, shape (K,); ones by default.
    epsilon : float, optional
        Added to both standard deviations, in reward units and in units of the sum.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex or ``groups`` are not integers.
    ValueError
        If a shape is wrong or ``epsilon`` is negative or not finite.

    References
    ----------
    GDPO, arXiv:2601.05242.

    Examples
    --------
    >>> import numpy as np
    >>> rewards = np.asarray([[0.0, 30.0], [1.0, 10.0], [1.0, 80.0]])
    >>> gdpo_advantages(rewards, np.asarray([0, 0, 0])).round(4)
    array([-0.9093, -0.1617,  1.071 ])
    """
    xp = namespace_of(rewards=rewards, groups=labels_of(groups))
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    columns = xp.expand_dims(rewards, axis=1) if rewards.ndim == 1 else rewards
    groups = as_groups(xp, "groups", groups, rewards.shape[0])
    require_positive("epsilon", epsilon, zero=True)
    working, result = working_dtype(xp, "rewards", rewards)
    columns = xp.astype(columns, working)
    weights = as_weights(xp, component_weights, columns)
    if columns.shape[0] == 0:
        return xp.zeros(0, dtype=result, device=device_of(rewards))
    scores = []
    for k in range(columns.shape[1]):
        component = moments(xp, SHRINK * columns[:, k], groups)
        scores.append(standard_score(xp, component, component, epsilon))
    total, _ = weighted_sum(xp, xp.stack(scores, axis=1), weights)
    undefined = xp.isnan(total)
    absent = xp.all(xp.isnan(columns), axis=1)
    total = SHRINK * xp.where(absent, xp.nan, total)
    batch = moments(xp, total, total.shape[0])
    score = xp.where(undefined, xp.nan, standard_score(xp, batch, batch, epsilon))
    return xp.astype(score, result)


def prepare(rewards: Array, groups: Groups) -> tuple[Namespace, Array, Groups, Array]:
    """Check (N,) rewards and groups; return namespace, shrunken rewards, groups, result dtype."""
    xp = namespace_of(rewards=rewards, groups=labels_of(groups))
    require_shape("rewards", rewards, ("N",))
    groups = as_groups(xp, "groups", groups, rewards.shape[0])
    working, result = working_dtype(xp, "rewards", rewards)
    return xp, SHRINK * xp.astype(rewards, working), groups, result


def standard_score(xp: Namespace, of: Moments, by: Moments, epsilon: float) -> Array:
    """Return the deviations within ``of`` over the standard deviation of ``by`` plus epsilon."""
    denominator = by.std(xp) + SHRINK * epsilon
    score = of.deviation / xp.where(denominator > 0, denominator, 1.0)
    # Where `by` holds an infinity that `of` does not, there is no standard deviation either.
    return xp.where(xp.isnan(by.deviation), by.deviation, score)
