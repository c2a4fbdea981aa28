"""Metrics of a batch of rollouts, over all of it and by task, under the names of TRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo._libraries import to_numpy
from g2rpo._typing import Array, Groups
from g2rpo.transport import has_signal

__all__ = ["rollout_metrics"]

Values = npt.NDArray[Any]

BY_TASK = "tasks/"
"""First part of the names of metrics by task that :func:`g2rpo.g2rpo_loss` returns."""


def rollout_metrics(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    /,
    *,
    lengths: Array,
    clipped: Array,
    names: Sequence[str] = (),
    components: Mapping[str, Array] | None = None,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the metrics of N rollouts, and those of each task.

    They are computed on the host, in NumPy.

    Parameters
    ----------
    rewards : array
        Real, shape (N,), in reward units. NaN is absent.
    groups : array or int
        Integer prompt labels, shape (N,), or n, for groups of n consecutive rollouts.
    tasks : array, optional
        Number of each rollout's task, shape (N,), an index of ``names``.
    lengths : array
        Lengths of the responses in tokens, shape (N,).
    clipped : array
        bool, shape (N,): True for a response that was cut off at the longest length.
    names : sequence of str, optional
        Names of the tasks. A task without rollouts has no metrics.
    components : mapping of str to array, optional
        Name of each component of the reward -> its values, shape (N,), in reward units.

    Returns
    -------
    overall : dict of str to float
        ``reward``; ``reward_std``, the mean of the groups' standard deviations;
        ``frac_reward_zero_std``, the share of rollouts in groups without signal;
        ``completions/clipped_ratio``; ``completions/mean_length``, ``…/min_length`` and
        ``…/max_length`` in tokens; ``rewards/<component>/mean`` and ``…/std`` where a component is
        present; ``num_tokens``. Means leave out NaN, and are NaN without any value, as is the
        deviation of an infinite reward.
    by_task : dict of str to dict
        Name of a task -> the same of its rollouts, without ``num_tokens``.

    Raises
    ------
    ValueError
        If a task has no name.

    Examples
    --------
    >>> import numpy as np
    >>> overall, by_task = rollout_metrics(
    ...     np.asarray([0.0, 1.0, 0.5, 0.5]), 2, np.asarray([0, 0, 1, 1]), names=["maths", "ocr"],
    ...     lengths=np.asarray([5, 7, 2, 2]), clipped=np.asarray([False, True, False, False]),
    ... )
    >>> overall["reward"], overall["reward_std"], overall["frac_reward_zero_std"]
    (0.5, 0.25, 0.5)
    >>> by_task["maths"]["completions/mean_length"], by_task["ocr"]["reward_std"]
    (6.0, 0.0)
    """
    values, sizes = to_numpy(rewards), to_numpy(lengths)
    labels = np.arange(len(values)) // groups if isinstance(groups, int) else to_numpy(groups)
    columns = {
        "reward": values,
        "reward_std": _deviations(values, labels),
        "frac_reward_zero_std": ~np.asarray(has_signal(values, labels)),
        "completions/clipped_ratio": to_numpy(clipped),
    }
    parts = {name: to_numpy(column) for name, column in (components or {}).items()}

    def of(rows: Any) -> dict[str, float]:
        found = {name: _mean(column[rows]) for name, column in columns.items()}
        for name, column in parts.items():
            present = column[rows][~np.isnan(column[rows])]
            if present.size:
                found[f"rewards/{name}/mean"] = float(present.mean())
                found[f"rewards/{name}/std"] = _deviation(present)
        for name in ("mean", "min", "max"):
            found[f"completions/{name}_length"] = float(getattr(sizes[rows], name)())
        return found

    overall = of(slice(None)) | {"num_tokens": float(sizes.sum())}
    if tasks is None or not len(names):
        return overall, {}
    numbers = to_numpy(tasks)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(names)):
        raise ValueError(
            f"tasks must be indices of the {len(names)} names, got {numbers.min()} to "
            f"{numbers.max()}"
        )
    rows_of = {name: numbers == k for k, name in enumerate(names)}
    return overall, {name: of(rows) for name, rows in rows_of.items() if rows.any()}


def suffixed(by_task: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return metrics by task under one name each, the metric's with the task as a suffix.

    Examples
    --------
    >>> suffixed({"ocr": {"reward": 0.5}})
    {'reward/ocr': 0.5}
    """
    return {f"{name}/{task}": value for task, own in by_task.items() for name, value in own.items()}


def named(
    name: str, value: Array | float, tasks: Sequence[str], present: Sequence[bool] | Array
) -> dict[str, float]:
    """Return a metric of :func:`g2rpo.g2rpo_loss` under the names of a log.

    Parameters
    ----------
    name : str
        Its name in the loss; one by task begins with :data:`BY_TASK`.
    value : float or array
        One number, or (num_tasks,) by task.
    tasks : sequence of str
        Names of the tasks; without any, metrics by task are left out.
    present : sequence of bool
        Tasks that have tokens; the others have no metrics.

    Examples
    --------
    >>> named("kl", 0.5, ["ocr", "maths"], [True, False])
    {'kl': 0.5}
    >>> named("tasks/kl", [0.5, 0.0], ["ocr", "maths"], [True, False])
    {'kl/ocr': 0.5}
    """
    numbers = to_numpy(value).tolist()
    if not name.startswith(BY_TASK):
        return {name: float(numbers[0] if isinstance(numbers, list) else numbers)}
    own = name.removeprefix(BY_TASK)
    if not tasks:
        return {}
    rows = zip(tasks, numbers, present, strict=True)
    return {f"{own}/{task}": number for task, number, is_there in rows if is_there}


def _deviations(values: Values, groups: Values) -> Values:
    """Return the standard deviation of each rollout's group; NaN where it has no reward."""
    found = np.full_like(values, np.nan)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    for rows in np.split(order, starts):
        present = values[rows][~np.isnan(values[rows])]
        if present.size:
            found[rows] = _deviation(present)
    return found


def _deviation(values: Values) -> float:
    return float(values.std()) if np.isfinite(values).all() else float("nan")


def _mean(values: Values) -> float:
    numbers = values.astype(np.float64)
    numbers = numbers[~np.isnan(numbers)]
    return float(numbers.mean()) if numbers.size else float("nan")
