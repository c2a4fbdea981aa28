"""Measures of advantages: distance to N(0, 1), inequality of tasks, influence of an outlier.

They are computed on the host, for reports and tests, and cannot be part of a compiled step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo._checks import namespace_of, require_labels, require_shape
from g2rpo._libraries import device_of, to_numpy
from g2rpo._normal import density, quantile_of_ratio
from g2rpo._typing import Array


class Normality(NamedTuple):
    """Distance of a sample to N(0, 1).

    Attributes
    ----------
    samples : int
        Number of values.
    w1, w2 : float
        Wasserstein distances of order 1 and 2.
    mean, variance : float
        Of the sample; the variance is divided by the number of values.
    skewness, kurtosis : float
        Standardised third and fourth moments, 0 and 3 for a Gaussian; NaN without variance.
    """

    samples: int
    w1: float
    w2: float
    mean: float
    variance: float
    skewness: float
    kurtosis: float


def normality(advantages: Array, tasks: Array | None = None) -> dict[int, Normality]:
    """Measure the distance of each task's advantages to N(0, 1).

    Parameters
    ----------
    advantages : array
        Real, shape (N,). NaN is left out.
    tasks : array, optional
        Integer labels, shape (N,); one task, labelled 0, by default.

    Returns
    -------
    dict of int to Normality
        By task label, in order; tasks with nothing but NaN are left out.

    Raises
    ------
    TypeError
        If an argument is no array or ``tasks`` are not integers.
    ValueError
        If a shape is wrong.

    Notes
    -----
    Both distances are exact: the integrals of the quantile functions have closed forms.

    Examples
    --------
    >>> import numpy as np
    >>> from g2rpo import match_gaussian
    >>> result = normality(match_gaussian(np.arange(1000.0)))[0]
    >>> round(result.w1, 3), round(result.variance, 3)
    (0.002, 0.999)
    """
    values, labels = _on_host(advantages, tasks)
    return {
        int(task): _normality_of(values[labels == task])
        for task in np.unique(labels[~np.isnan(values)])
    }


def squared_shares(advantages: Array, tasks: Array) -> dict[int, float]:
    """Return the share of the squared advantages that each task holds; they sum to 1.

    Parameters
    ----------
    advantages : array
        Real, shape (N,). NaN is left out.
    tasks : array
        Integer labels, shape (N,).

    Returns
    -------
    dict of int to float
        By task label, in order. All 0 if every advantage is 0.

    Raises
    ------
    TypeError
        If an argument is no array or ``tasks`` are not integers.
    ValueError
        If a shape is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> squared_shares(np.asarray([1.0, -1.0, 3.0, -3.0]), np.asarray([0, 0, 1, 1]))
    {0: 0.1, 1: 0.9}
    """
    values, labels = _on_host(advantages, tasks)
    sums = {int(t): float(np.nansum(values[labels == t] ** 2)) for t in np.unique(labels)}
    total = math.fsum(sums.values())
    return {task: value / total if total else 0.0 for task, value in sums.items()}


def equity(per_task_norms: Array | Mapping[Any, float]) -> float:
    """Return the largest of the tasks' norms over the smallest: 1 for equal tasks.

    Parameters
    ----------
    per_task_norms : array or mapping
        Non-negative, shape (num_tasks,), or values by task: gradient norms, or root mean square
        advantages. NaN is left out.

    Returns
    -------
    float
        At least 1; infinite if only some norms are 0, and 1 if all are or there are none.

    Raises
    ------
    ValueError
        If a norm is negative or the shape is wrong.

    Examples
    --------
    >>> equity({"maths": 0.5, "ocr": 2.0})
    4.0
    """
    if isinstance(per_task_norms, Mapping):
        norms = np.asarray(list(per_task_norms.values()), dtype=np.float64)
    else:
        namespace_of(per_task_norms=per_task_norms)
        norms = to_numpy(per_task_norms).astype(np.float64)
    require_shape("per_task_norms", norms, ("num_tasks",))
    norms = norms[~np.isnan(norms)]
    if np.any(norms < 0):
        raise ValueError(f"per_task_norms must be non-negative, got {norms.min()}")
    if norms.size == 0 or norms.max() == 0:
        return 1.0
    return float(norms.max() / norms.min()) if norms.min() > 0 else math.inf


class Influence(NamedTuple):
    """Largest change of other rollouts' advantages when one reward becomes extreme.

    Attributes
    ----------
    group : float
        On the other rollouts of its group.
    task : float
        On the other groups of its task.
    elsewhere : float
        On other tasks.
    """

    group: float
    task: float
    elsewhere: float


def outlier_influence(
    estimator: Callable[..., Array],
    rewards: Array,
    groups: Array,
    tasks: Array | None = None,
    *,
    index: int | None = None,
    magnitude: float = 1e6,
    **options: Any,
) -> Influence:
    """Measure how much one extreme reward changes the advantages of other rollouts.

    The reward at ``index`` is increased. The default is the largest reward of all, so that no rank
    changes, and a method by ranks should give the same advantages.

    Parameters
    ----------
    estimator : callable
        ``estimator(rewards, groups, tasks, **options)`` -> advantages (N,), such as a value of
        :data:`g2rpo.ESTIMATORS`.
    rewards : array
        Floating point, shape (N,).
    groups : array
        Integer labels, shape (N,).
    tasks : array, optional
        Integer labels, shape (N,); one task by default.
    index : int, optional
        The rollout to change; the one with the largest finite reward by default.
    magnitude : float, optional
        Increase of the reward, in units of the largest finite reward's magnitude (at least 1).
    **options
        For the estimator.

    Returns
    -------
    Influence
        Largest absolute changes; 0 where there is no such rollout, NaN where an advantage is NaN.

    Raises
    ------
    TypeError
        If an argument is no array or labels are not integers.
    ValueError
        If a shape is wrong or there is no finite reward.

    Examples
    --------
    >>> import numpy as np
    >>> from g2rpo import ESTIMATORS
    >>> rewards, groups = np.asarray([0.1, 0.5, 0.7, 0.2, 0.3]), np.asarray([0, 0, 0, 1, 1])
    >>> outlier_influence(ESTIMATORS["gaussian"], rewards, groups)
    Influence(group=0.0, task=0.0, elsewhere=0.0)
    >>> outlier_influence(ESTIMATORS["grpo"], rewards, groups).group > 0.3
    True
    """
    values, task_labels = _on_host(rewards, tasks)
    xp = namespace_of(rewards=rewards, groups=groups, tasks=tasks)
    require_labels(xp, "groups", groups, values.shape[0])
    group_labels = to_numpy(groups)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("rewards must hold a finite value")
    if index is None:
        index = int(np.argmax(np.where(finite, values, -np.inf)))
    push = magnitude * max(1.0, float(np.abs(values[finite]).max()))
    chosen = xp.arange(values.shape[0], device=device_of(rewards)) == index
    before = to_numpy(estimator(rewards, groups, tasks, **options))
    after = to_numpy(estimator(xp.where(chosen, rewards + push, rewards), groups, tasks, **options))
    change = np.abs(after.astype(np.float64) - before.astype(np.float64))
    same_group = group_labels == group_labels[index]
    same_task = task_labels == task_labels[index]
    others = np.arange(values.shape[0]) != index
    return Influence(
        _largest(change[same_group & others]),
        _largest(change[same_task & ~same_group]),
        _largest(change[~same_task]),
    )


def _largest(changes: npt.NDArray[np.float64]) -> float:
    return float(changes.max()) if changes.size else 0.0


def _on_host(
    values: Array, tasks: Array | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any]]:
    xp = namespace_of(values=values, tasks=tasks)
    require_shape("values", values, ("N",))
    host = to_numpy(values).astype(np.float64)
    if tasks is None:
        return host, np.zeros(host.shape[0], dtype=np.int64)
    require_labels(xp, "tasks", tasks, host.shape[0])
    return host, to_numpy(tasks)


def _normality_of(values: npt.NDArray[np.float64]) -> Normality:
    values = np.sort(values[~np.isnan(values)])
    n = values.shape[0]
    mean = float(values.mean())
    centred = values - mean
    variance = float(np.mean(centred**2))
    skewness = kurtosis = math.nan
    if variance > 0:
        skewness = float(np.mean(centred**3)) / variance**1.5
        kurtosis = float(np.mean(centred**4)) / variance**2

    # phi at the edges of the n intervals of probability 1 / n; their differences integrate z.
    edges = np.zeros(n + 1)
    inner = np.arange(1, n)
    # NumPy's own arrays of before version 2 lack parts of the standard.
    xp = namespace_of(values=values)
    cuts = quantile_of_ratio(xp, inner, np.full(n - 1, n), np.float64)
    edges[1:-1] = density(xp, cuts)
    barycentres = edges[:-1] - edges[1:]
    w2 = max(0.0, mean * mean + variance + 1.0 - 2.0 * float(values @ barycentres))
    # Inside an interval the value crosses the quantile function at p, or not at all.
    lower, upper = np.arange(n) / n, np.arange(1, n + 1) / n
    cdf = np.asarray([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in values.tolist()])
    crossing = np.where(
        cdf <= lower, edges[:-1], np.where(cdf >= upper, edges[1:], density(xp, values))
    )
    p = np.clip(cdf, lower, upper)
    w1 = float(np.sum(values * (2 * p - lower - upper) - edges[:-1] - edges[1:] + 2 * crossing))
    return Normality(n, w1, math.sqrt(w2), mean, variance, skewness, kurtosis)
