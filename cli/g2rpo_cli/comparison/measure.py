"""Estimators side by side on the same rewards: what each makes of every task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo.advantages import ESTIMATORS, Estimator, takes_lengths
from g2rpo.diagnostics import (
    Influence,
    Normality,
    equity,
    normality,
    outlier_influence,
    squared_shares,
)
from g2rpo.transport import has_signal
from g2rpo_cli.comparison.estimators import named_estimator
from g2rpo_cli.comparison.rewards import RewardTable
from g2rpo_trainer.files import to_json

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TaskRewards:
    """Rewards of a task, before any estimator.

    Attributes
    ----------
    rewards, groups : int
        Rows that hold a reward, and groups that hold such a row.
    groups_without_signal : int
        Groups without signal: all their rewards are equal.
    absent, infinite : int
        Rows without a reward, and with an infinite one.
    share : float
        Share of the rewards in groups with signal: the share of the squared advantages that the
        task would hold if all tasks weighed alike.
    """

    rewards: int
    groups: int
    groups_without_signal: int
    absent: int
    infinite: int
    share: float


@dataclass(frozen=True)
class TaskReport:
    """Advantages of a task by one estimator.

    Attributes
    ----------
    normality : Normality or None
        Of the advantages in groups with signal, less those that are NaN; None if there are none.
    largest : float
        The largest magnitude of an advantage; NaN if there is none.
    share : float
        Share of the squared advantages of all tasks.
    undefined : int
        Advantages that are NaN.
    """

    normality: Normality | None
    largest: float
    share: float
    undefined: int


@dataclass(frozen=True)
class EstimatorReport:
    """Advantages of all tasks by one estimator.

    Attributes
    ----------
    advantages : numpy.ndarray
        float64, shape (N,).
    tasks : tuple of TaskReport
        In the order of the table's tasks.
    equity : float
        Largest root mean square advantage of a task (over groups with signal) over the smallest.
    influence : Influence
        How far one extreme reward reaches; the largest over the components, if there are several.
    """

    advantages: npt.NDArray[np.float64]
    tasks: tuple[TaskReport, ...]
    equity: float
    influence: Influence


@dataclass(frozen=True)
class Comparison:
    """Several estimators on one table of rewards.

    Attributes
    ----------
    table : RewardTable
        The rewards.
    has_signal : numpy.ndarray
        bool, shape (N,): whether a row holds a reward in a group with signal.
    tasks : tuple of TaskRewards
        In the order of ``table.task_names``.
    estimators : dict of str to EstimatorReport
        By name, in the order asked for.
    """

    table: RewardTable
    has_signal: Flags
    tasks: tuple[TaskRewards, ...]
    estimators: dict[str, EstimatorReport]

    def to_json(self, *, values: bool = False) -> dict[str, Any]:
        """Return all numbers for JSON: NaN becomes null, infinities become texts.

        With ``values``, also the rewards and advantages themselves.
        """
        names, estimators = self.table.task_names, self.estimators
        content: dict[str, Any] = {
            "source": self.table.source,
            "rewards": self.table.reward_names,
            "tasks": dict(zip(names, map(asdict, self.tasks), strict=True)),
            "estimators": {
                estimator: {
                    "equity": report.equity,
                    "outlier_influence": report.influence._asdict(),
                    "tasks": dict(zip(names, map(_numbers, report.tasks), strict=True)),
                }
                for estimator, report in estimators.items()
            },
        }
        if values:
            content["values"] = {
                "rewards": self.table.rewards.tolist(),
                "groups": self.table.groups.tolist(),
                "tasks": [names[task] for task in self.table.tasks],
                "advantages": {name: of.advantages.tolist() for name, of in estimators.items()},
            }
        plain: dict[str, Any] = to_json(content)
        return plain


def _numbers(of: TaskReport) -> dict[str, float]:
    moments = (of.normality or Normality(0, *[math.nan] * 6))._asdict()
    return {**moments, "largest": of.largest, "share": of.share, "undefined": of.undefined}


def compare(
    table: RewardTable,
    estimators: Sequence[str] | Mapping[str, Estimator] | None = None,
    *,
    component_weights: Sequence[float] | None = None,
    decoupled: bool = False,
    influence: bool = True,
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
    if estimators is None:
        has_lengths = table.lengths is not None
        estimators = [
            name for name, of in ESTIMATORS.items() if has_lengths or not takes_lengths(of)
        ]
    if not isinstance(estimators, Mapping):
        estimators = {
            name: named_estimator(name, component_weights=component_weights, decoupled=decoupled)
            for name in estimators
        }
    with_signal = _with_signal(table)
    index = _outlier(table)
    reports = {}
    # Huge advantages have no moments, and infinite ones no mean: both show as what they are.
    with np.errstate(over="ignore", invalid="ignore"):
        for name, function in estimators.items():
            takes = takes_lengths(function)
            estimator = partial(function, lengths=table.lengths) if takes else function
            reach = _influence(table, estimator, index) if influence else _UNKNOWN
            reports[name] = _report(table, with_signal, estimator, reach)
    return Comparison(table, with_signal, tuple(_task_rewards(table, with_signal)), reports)


_UNKNOWN = Influence(math.nan, math.nan, math.nan)


def _components(table: RewardTable) -> npt.NDArray[np.float64]:
    return table.rewards if table.rewards.ndim == 2 else table.rewards[:, np.newaxis]


def _with_signal(table: RewardTable) -> Flags:
    found = np.zeros(len(table), dtype=bool)
    for column in _components(table).T:
        found |= has_signal(column, table.groups) & ~np.isnan(column)
    return found


def _task_rewards(table: RewardTable, with_signal: Flags) -> Iterator[TaskRewards]:
    columns = _components(table)
    present = ~np.isnan(columns).all(axis=1)
    infinite = np.isinf(columns).any(axis=1)
    for task in range(len(table.task_names)):
        own = table.tasks == task
        groups = np.unique(table.groups[own & present]).size
        yield TaskRewards(
            rewards=int((own & present).sum()),
            groups=groups,
            groups_without_signal=groups - np.unique(table.groups[own & with_signal]).size,
            absent=int((own & ~present).sum()),
            infinite=int((own & infinite).sum()),
            share=float((own & with_signal).sum() / max(1, with_signal.sum())),
        )


def _report(
    table: RewardTable, with_signal: Flags, estimator: Estimator, influence: Influence
) -> EstimatorReport:
    tasks = table.tasks
    advantages = np.asarray(estimator(table.rewards, table.groups, tasks), dtype=np.float64)
    gaussian = normality(advantages[with_signal], tasks[with_signal])
    shares = squared_shares(advantages, tasks)
    reports = []
    for task in range(len(table.task_names)):
        own = advantages[tasks == task]
        defined = own[~np.isnan(own)]
        largest = float(np.abs(defined).max()) if defined.size else math.nan
        undefined = own.size - defined.size
        reports.append(TaskReport(gaussian.get(task), largest, shares.get(task, 0.0), undefined))
    sizes = {task: math.hypot(of.mean, math.sqrt(of.variance)) for task, of in gaussian.items()}
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
    return Influence(*np.max(changes, axis=0).tolist()) if changes else _UNKNOWN
