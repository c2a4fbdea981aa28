"""Estimators by means and deviations: GRPO, Dr.GRPO, RLOO, REINFORCE++, OPO and GDPO.

A NaN reward is absent: it gets 0 and enters no mean. A group with an infinite reward has no mean,
and all of its advantages are NaN.
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
from g2rpo._segments import segment_peak
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
        The divisor: the unbiased standard deviation of the group, of the whole batch, or none,
        which is Dr.GRPO.
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


def reinforce_plus_plus_advantages(
    rewards: Array, groups: Groups, /, *, group_baseline: bool = False, epsilon: float = 1e-6
) -> Array:
    r"""Return REINFORCE++'s advantages: the reward's standard score in the whole batch.

    .. math:: A = (R - \mathrm{mean}_{batch}) / (\mathrm{std}_{batch} + \epsilon)

    With ``group_baseline``, REINFORCE++ with baseline, the group's mean is subtracted first:

    .. math:: A = D / (\mathrm{std}_{batch}(D) + \epsilon), \qquad D = R - \mathrm{mean}_{group}

    Parameters
    ----------
    rewards : array
        Real, shape (N,). NaN is absent.
    groups : array
        Integer prompt labels, shape (N,). Without ``group_baseline`` they are checked, not used.
    group_baseline : bool, optional
        Whether to subtract the group's mean before the batch's standard deviation is taken.
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
        If a shape is wrong or ``epsilon`` is negative or not finite.

    Notes
    -----
    The batch is all that is given in one call; standard deviations are unbiased. The paper's
    REINFORCE++ subtracts a token-wise k1 estimate of KL from the reward before normalising. Here
    advantages are of whole responses, and the KL term of :func:`g2rpo.g2rpo_loss` is added to the
    surrogate, as in the paper's variant with baseline.

    The mean of the centred rewards D is 0, so it is not subtracted. Without ``group_baseline`` a
    group without signal gets the standard score of its reward, and an infinite reward makes the
    whole batch NaN. With it, groups without signal, single responses among them, get exactly
    0, and an infinite reward makes its group NaN and enters no standard deviation. Equal rewards
    of a group have equal advantages; where all of the batch are equal, they are exactly 0.

    References
    ----------
    REINFORCE++, arXiv:2501.03262.

    Examples
    --------
    >>> import numpy as np
    >>> rewards, groups = np.asarray([0.0, 1.0, 1.0, 1.0]), np.asarray([0, 0, 1, 1])
    >>> reinforce_plus_plus_advantages(rewards, groups).round(4)
    array([-1.5,  0.5,  0.5,  0.5])
    >>> reinforce_plus_plus_advantages(rewards, groups, group_baseline=True).round(4)
    array([-1.2247,  1.2247,  0.    ,  0.    ])
    """
    xp, values, groups, result = prepare(rewards, groups)
    require_positive("epsilon", epsilon, zero=True)
    size = values.shape[0]
    if size == 0:
        return xp.astype(values, result)
    if not group_baseline:
        batch = moments(xp, values, size)
        return xp.astype(standard_score(xp, batch, batch, epsilon), result)
    # Scaled down once more: the range of the differences is twice that of the rewards.
    centred = SHRINK * moments(xp, values, groups).deviation
    batch = moments(xp, xp.where(xp.isnan(values), xp.nan, centred), size)
    denominator = batch.std(xp) + SHRINK * SHRINK * epsilon
    return xp.astype(centred / xp.where(denominator > 0, denominator, 1.0), result)


def opo_advantages(rewards: Array, groups: Groups, /, *, lengths: Array | None) -> Array:
    r"""Return OPO's advantages: the reward minus its group's mean weighted by length.

    .. math:: A_i = R_i - \frac{\sum_j l_j R_j}{\sum_j l_j}

    with j over the group of i. This baseline minimises the variance of the policy gradient where
    the squared norm of a response's gradient grows in proportion to its length l.

    Parameters
    ----------
    rewards : array
        Real, shape (N,). NaN is absent.
    groups : array
        Integer prompt labels, shape (N,).
    lengths : array
        Real, shape (N,): lengths of the responses, in tokens.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``.

    Raises
    ------
    TypeError
        If an argument is missing or no array, ``rewards`` or ``lengths`` are complex or ``groups``
        are not integers.
    ValueError
        If a shape is wrong.

    Notes
    -----
    There is no standard deviation and no epsilon. The advantages of a group, weighted by length,
    sum to 0. Equal rewards have equal advantages for any lengths; groups without signal,
    single responses among them, get exactly 0. An infinite reward makes its group NaN, and so does
    a length that is negative, infinite or NaN, unless the reward is absent. A response without
    tokens does not enter the baseline; where no response of a group has any, it is the plain mean,
    as for equal lengths.

    References
    ----------
    OPO, arXiv:2505.23585.

    Examples
    --------
    >>> import numpy as np
    >>> rewards, groups = np.asarray([0.0, 1.0, 1.0]), np.asarray([0, 0, 0])
    >>> opo_advantages(rewards, groups, lengths=np.asarray([20, 10, 10])).round(4)
    array([-0.5,  0.5,  0.5])
    """
    xp, values, groups, result = prepare(rewards, groups)
    if lengths is None:
        raise TypeError("lengths must be an array (N,), the responses' lengths in tokens, got None")
    namespace_of(rewards=rewards, lengths=lengths)
    require_shape("lengths", lengths, values.shape)
    working_dtype(xp, "lengths", lengths)
    if values.shape[0] == 0:
        return xp.astype(values, result)
    absent = xp.isnan(values)
    weights = xp.astype(lengths, values.dtype)
    possible = (weights >= 0) & xp.isfinite(weights)
    weights = xp.where(possible & ~absent, weights, 0.0)
    longest = segment_peak(xp, weights, groups)
    # The baseline of a group without any length above 0 is the plain mean.
    weights = xp.where(longest > 0, weights / xp.where(longest > 0, longest, 1.0), 1.0)
    group = moments(xp, xp.where(possible | absent, values, xp.inf), groups, weights)
    return xp.astype(xp.where(absent, 0.0, group.deviation / SHRINK), result)


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
    """Check (N,) rewards and groups; return namespace, scaled rewards, groups, result dtype.

    The rewards are multiplied by ``SHRINK``.
    """
    xp = namespace_of(rewards=rewards, groups=labels_of(groups))
    require_shape("rewards", rewards, ("N",))
    groups = as_groups(xp, "groups", groups, rewards.shape[0])
    working, result = working_dtype(xp, "rewards", rewards)
    return xp, SHRINK * xp.astype(rewards, working), groups, result


def standard_score(xp: Namespace, of: Moments, by: Moments, epsilon: float) -> Array:
    """Return the deviations of ``of`` over the standard deviation of ``by`` plus epsilon."""
    denominator = by.std(xp) + SHRINK * epsilon
    score = of.deviation / xp.where(denominator > 0, denominator, 1.0)
    # An infinity in `by` alone leaves no standard deviation either.
    return xp.where(xp.isnan(by.deviation), by.deviation, score)
