"""REINFORCE++: rewards normalised over the whole batch rather than over each group."""

from __future__ import annotations

from g2rpo._baselines import prepare, standard_score
from g2rpo._checks import require_positive
from g2rpo._moments import SHRINK, moments
from g2rpo._typing import Array, Groups


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
    The batch is all that is given in one call, with unbiased standard deviations over responses.
    The paper's REINFORCE++ puts a token-wise k1 penalty of KL into the reward before it is
    normalised. It is left out here: advantages are of whole responses, and the KL term of
    :func:`g2rpo.g2rpo_loss` stands beside the surrogate, as in the paper's form with baseline.

    The mean of the centred rewards D is 0, so it is not subtracted. Without ``group_baseline`` a
    group without signal gets what its reward is worth in the batch, and an infinite reward makes
    the whole batch NaN. With it, groups without signal, single responses among them, get exactly
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
    # Shrunk once more: the range of the differences is twice that of the rewards.
    centred = SHRINK * moments(xp, values, groups).deviation
    batch = moments(xp, xp.where(xp.isnan(values), xp.nan, centred), size)
    denominator = batch.std(xp) + SHRINK * SHRINK * epsilon
    return xp.astype(centred / xp.where(denominator > 0, denominator, 1.0), result)
