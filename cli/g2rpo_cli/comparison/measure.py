"""Estimators side by side on the same rewards: what each makes of every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo.advantages import ESTIMATORS, Estimator, takes_lengths
from g2rpo.diagnostics import (
    Influence,
    equity,
    normality,
    outlier_influence,
    squared_shares,
)
from g2rpo.transport import has_signal
from g2rpo_cli.comparison.options import named_estimator
from g2rpo_cli.comparison.reading import Track, untracked
from g2rpo_cli.comparison.reports import Comparison, EstimatorReport, TaskReport, TaskRewards
from g2rpo_cli.comparison.table import RewardTable

__all__ = ["compare"]


def compare(
    table: RewardTable,
    estimators: Sequence[str] | Mapping[str, Estimator] | None = None,
    *,
    component_weights: Sequence[float] | None = None,
    decoupled: bool = False,
    influence: bool = True,
    track: Track = untracked,
) -> Comparison:
    """Run estimators on the same rewards and measure what each makes of every task.

    Parameters
    ----------
    table : RewardTable
        The rewards, from :func:`read_rewards` or built from arrays.
    estimators : sequence of str, or mapping of str to callable, optional
        Names in :data:`g2rpo.ESTIMATORS`, with options if need be
        (``"gaussian:task_stage=match,ties=barycentre"``), or functions
        ``estimator(rewards, groups, tasks)`` by name; one with a keyword ``lengths`` gets those of
        the table. By default all that are registered, but for those that take lengths if the table
        has none.
    component_weights : sequence of float, optional
        Weights of the K components of the rewards, for estimators given by name.
    decoupled : bool, optional
        Whether estimators that can are to normalise every component by itself.
    influence : bool, optional
        Whether to measure the influence of an outlier, which runs each estimator twice more; NaN
        without.
    track : callable, optional
        As in :func:`read_rewards`.

    Returns
    -------
    Comparison

    Raises
    ------
    RunError
        If an estimator or an option is unknown, an option has a wrong value, or an estimator
        given by name needs lengths and the table has none.

    Notes
    -----
    Mean, variance and distances are those of the rollouts in groups with signal: most estimators
    give 0 to the others. Shares are of all rollouts.

    The influence of an outlier is measured by :func:`g2rpo.diagnostics.outlier_influence` at a
    reward that stands alone at the top of its group: making it larger changes the size of one
    reward and the rank of none. Of all such rewards it is the median one, a typical best.

    Examples
    --------
    >>> import numpy as np
    >>> groups = np.asarray([0, 0, 0, 0, 1, 1, 1, 1])
    >>> table = RewardTable(
    ...     np.asarray([0, 0, 0, 1, 0.1, 0.2, 0.3, 9.0]), groups, groups, ("maths", "ocr")
    ... )
    >>> result = compare(table, ["dr-grpo", "gaussian"])
    >>> [round(task.share, 3) for task in result.estimators["dr-grpo"].tasks]
    [0.013, 0.987]
    >>> [round(task.share, 3) for task in result.estimators["gaussian"].tasks]
    [0.5, 0.5]
    """
    if not isinstance(estimators, Mapping):
        names = list(dict.fromkeys(default_estimators(table) if estimators is None else estimators))
        estimators = {
            name: named_estimator(name, component_weights=component_weights, decoupled=decoupled)
            for name in names
        }
    has_signal = _has_signal(table)
    index = _outlier(table)
    unknown = Influence(math.nan, math.nan, math.nan)
    reports = {}
    # Huge advantages have no moments, and infinite ones no mean: both show as what they are.
    with np.errstate(over="ignore", invalid="ignore"):
        for name, function in track(list(estimators.items()), len(estimators), "comparing"):
            takes = takes_lengths(function)
            estimator = partial(function, lengths=table.lengths) if takes else function
            reach = _influence(table, estimator, index) if influence else unknown
            reports[name] = _report(table, has_signal, estimator, reach)
    return Comparison(table, has_signal, _task_rewards(table, has_signal), reports)


def default_estimators(table: RewardTable) -> list[str]:
    """Return the names of all estimators that can work on the table."""
    has_lengths = table.lengths is not None
    return [name for name, each in ESTIMATORS.items() if has_lengths or not takes_lengths(each)]


def _components(table: RewardTable) -> npt.NDArray[np.float64]:
    return table.rewards if table.rewards.ndim == 2 else table.rewards[:, np.newaxis]


def _has_signal(table: RewardTable) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(table), dtype=bool)
    for column in _components(table).T:
        found |= has_signal(column, table.groups) & ~np.isnan(column)
    return found


def _task_rewards(table: RewardTable, has_signal: npt.NDArray[np.bool_]) -> tuple[TaskRewards, ...]:
    columns = _components(table)
    present = ~np.isnan(columns).all(axis=1)
    infinite = np.isinf(columns).any(axis=1)
    reports = []
    for task in range(len(table.task_names)):
        own = table.tasks == task
        groups = np.unique(table.groups[own & present]).size
        reports.append(
            TaskRewards(
                rewards=int((own & present).sum()),
                groups=groups,
                groups_without_signal=groups - np.unique(table.groups[own & has_signal]).size,
                absent=int((own & ~present).sum()),
                infinite=int((own & infinite).sum()),
                share=float((own & has_signal).sum() / max(1, has_signal.sum())),
            )
        )
    return tuple(reports)


def _report(
    table: RewardTable,
    has_signal: npt.NDArray[np.bool_],
    estimator: Estimator,
    influence: Influence,
) -> EstimatorReport:
    rewards, groups, tasks = table.rewards, table.groups, table.tasks
    advantages = np.asarray(estimator(rewards, groups, tasks), dtype=np.float64)
    gaussian = normality(advantages[has_signal], tasks[has_signal])
    shares = squared_shares(advantages, tasks)
    sizes = {t: math.hypot(of.mean, math.sqrt(of.variance)) for t, of in gaussian.items()}
    reports = []
    for task in range(len(table.task_names)):
        own = advantages[tasks == task]
        defined = own[~np.isnan(own)]
        reports.append(
            TaskReport(
                normality=gaussian.get(task),
                largest=float(np.abs(defined).max()) if defined.size else math.nan,
                share=shares.get(task, 0.0),
                undefined=own.size - defined.size,
            )
        )
    return EstimatorReport(advantages, tuple(reports), equity(sizes), influence)


def _outlier(table: RewardTable) -> int | None:
    """Return the row of the median among finite rewards alone at the top of their groups."""
    values = _components(table)[:, 0]
    finite = np.flatnonzero(~np.isnan(values))
    order = finite[np.lexsort((values[finite], table.groups[finite]))]
    groups, values = table.groups[order], values[order]
    same = groups[1:] == groups[:-1]
    last = np.append(~same, True)[: order.size]
    above = np.append(False, same & (values[1:] > values[:-1]))[: order.size]
    alone = np.flatnonzero(last & above & np.isfinite(values))
    ranked = alone[np.argsort(values[alone], kind="stable")]
    return int(order[ranked[ranked.size // 2]]) if ranked.size else None


def _influence(table: RewardTable, estimator: Estimator, index: int | None) -> Influence:
    columns = _components(table)
    changes = []
    for k, column in enumerate(columns.T):
        if not np.isfinite(column if index is None else column[index]).any():
            continue  # nothing here to make larger

        def of_component(values: Any, groups: Any, tasks: Any, k: int = k) -> Any:
            changed = columns.copy()
            changed[:, k] = values
            return estimator(changed.reshape(table.rewards.shape), groups, tasks)

        changes.append(
            outlier_influence(of_component, column, table.groups, table.tasks, index=index)
        )
    if not changes:
        return Influence(math.nan, math.nan, math.nan)
    return Influence(*np.max(changes, axis=0).tolist())
