"""OPO: the reward minus the baseline that keeps the variance of the policy gradient lowest."""

from __future__ import annotations

from g2rpo._baselines import prepare
from g2rpo._checks import namespace_of, require_shape, working_dtype
from g2rpo._moments import SHRINK, moments
from g2rpo._segments import segment_peak
from g2rpo._typing import Array, Groups


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
    sum to 0. Equal rewards have equal advantages whatever their lengths; groups without signal,
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
    # A group without a length above 0 has the plain mean for its baseline.
    weights = xp.where(longest > 0, weights / xp.where(longest > 0, longest, 1.0), 1.0)
    group = moments(xp, xp.where(possible | absent, values, xp.inf), groups, weights)
    return xp.astype(xp.where(absent, 0.0, group.deviation / SHRINK), result)
