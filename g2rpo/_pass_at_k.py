"""Pass@k training: advantages of the reward that at least one of k responses is right."""

from __future__ import annotations

import math

from g2rpo._baselines import prepare
from g2rpo._moments import moments
from g2rpo._typing import Array, Groups, Namespace


def pass_at_k_advantages(
    rewards: Array, groups: Groups, /, *, k: int = 4, threshold: float = 0.5
) -> Array:
    r"""Return the advantages of pass@k training, over all subsets of k responses of a group.

    A subset's reward is 1 if one of its responses is right. Among the :math:`\binom nk` subsets of
    n responses, c of them right, it has mean and standard deviation

    .. math:: \rho = 1 - \binom{n - c}{k} \Big/ \binom nk, \qquad \sigma = \sqrt{\rho (1 - \rho)}

    and a response gets the mean of the standard scores of the subsets that it is in:

    .. math:: A_{right} = \frac{1 - \rho}{\sigma}, \qquad A_{wrong} = \frac{1}{\sigma} \left(
              1 - \rho - \binom{n - c - 1}{k - 1} \Big/ \binom{n - 1}{k - 1} \right)

    Parameters
    ----------
    rewards : array
        Real, shape (N,), 1 for right and 0 for wrong. NaN is absent.
    groups : array
        Integer prompt labels, shape (N,).
    k : int, optional
        Size of the subsets, less than the number of responses in a group.
    threshold : float, optional
        A response is right if its reward is above this, in reward units. The method is defined for
        rewards of 0 and 1; graded rewards are reduced to these.

    Returns
    -------
    array
        Shape (N,), the device and floating dtype of ``rewards``.

    Raises
    ------
    TypeError
        If an argument is no array, ``rewards`` are complex, ``groups`` are not integers or ``k``
        is no integer.
    ValueError
        If a shape is wrong, ``k`` is below 1 or ``threshold`` is not finite.

    Notes
    -----
    With k = 1 this is GRPO on 0/1 rewards with the population's standard deviation. The advantages
    of a group sum to 0. They are exactly 0 where all subsets are worth the same: where none or all
    are right, where only k - 1 or fewer are wrong, and so in every group of k or fewer present
    responses. Infinite rewards are right or wrong like others. No epsilon is needed, because
    :math:`A_{right} = \sqrt{(1 - \rho) / \rho}` and :math:`A_{wrong} = -A_{right}\, c / (n - c)`;
    both shares are products of k factors, so no binomial is too large and no digits cancel. The
    gradient is zero.

    This is not verl's ``grpo_passk``, which gives the best response of a group its distance from
    the second best, over the group's standard deviation, and all others 0 (arXiv:2503.19595, for
    k = n), nor the reward transformation of PKPO (arXiv:2505.15201).

    References
    ----------
    Pass@k Training, arXiv:2508.10751.

    Examples
    --------
    One of four responses is right, so it is in half of the pairs:

    >>> import numpy as np
    >>> rewards, groups = np.asarray([1.0, 0.0, 0.0, 0.0]), np.asarray([0, 0, 0, 0])
    >>> pass_at_k_advantages(rewards, groups, k=2).round(4)
    array([ 1.    , -0.3333, -0.3333, -0.3333])
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, got {threshold!r}")
    xp, values, groups, result = prepare(rewards, groups)
    if values.shape[0] == 0:
        return xp.astype(values, result)
    absent = xp.isnan(values)
    right = xp.astype(xp.astype(rewards, values.dtype) > threshold, values.dtype)
    group = moments(xp, xp.where(absent, xp.nan, right), groups)
    number = xp.round(group.size * group.mean)
    passing, failing = _shares(xp, group.size, number, k)
    subsets_differ = (passing > 0) & (failing > 0) & ~absent
    of_right = xp.sqrt(failing / xp.where(subsets_differ, passing, 1.0))
    of_wrong = -of_right * number / xp.where(subsets_differ, group.size - number, 1.0)
    advantages = xp.where(right > 0, of_right, of_wrong)
    return xp.astype(xp.where(subsets_differ, advantages, 0.0), result)


def _shares(xp: Namespace, size: Array, right: Array, k: int) -> tuple[Array, Array]:
    """Return the shares of all subsets of k with a right response, and without one; shape (N,).

    A subset is drawn member by member: after j wrong ones the next is right with probability
    c / (n - j).
    """
    passing, failing = xp.zeros_like(size), xp.ones_like(size)
    for drawn in range(k):
        left = xp.clip(size - drawn, 1.0, None)
        passing = passing + failing * (right / left)
        failing = failing * (xp.clip(size - right - drawn, 0.0, None) / left)
    return passing, failing
