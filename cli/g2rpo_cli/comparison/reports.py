"""What a comparison found: numbers for every estimator and task, and all of them as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo.diagnostics import Influence, Normality
from g2rpo_cli.comparison.table import RewardTable
from g2rpo_trainer.files import to_json

__all__ = ["Comparison", "EstimatorReport", "TaskReport", "TaskRewards"]


@dataclass(frozen=True)
class TaskRewards:
    """What a task's rewards are like, before any estimator.

    Attributes
    ----------
    rewards, groups : int
        Rows that hold a reward, and groups that hold such a row.
    groups_without_signal : int
        Groups without signal: all their rewards are equal.
    absent, infinite : int
        Rows without a reward, and with an infinite one.
    share : float
        The task's share of the rewards in groups with signal: the share of the squared advantages
        that it would hold if all tasks weighed alike.
    """

    rewards: int
    groups: int
    groups_without_signal: int
    absent: int
    infinite: int
    share: float


@dataclass(frozen=True)
class TaskReport:
    """What an estimator makes of a task.

    Attributes
    ----------
    normality : Normality or None
        Of the advantages in groups with signal, less those that are NaN; None if there are none.
    largest : float
        The largest magnitude of an advantage; NaN if there is none.
    share : float
        Of the squared advantages of all tasks.
    undefined : int
        Advantages that are NaN.
    """

    normality: Normality | None
    largest: float
    share: float
    undefined: int


@dataclass(frozen=True)
class EstimatorReport:
    """What an estimator makes of all tasks.

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
    has_signal: npt.NDArray[np.bool_]
    tasks: tuple[TaskRewards, ...]
    estimators: dict[str, EstimatorReport]

    def to_json(self, *, values: bool = False) -> dict[str, Any]:
        """Return all numbers for JSON: NaN becomes null, infinities become texts.

        With ``values``, also the rewards and advantages themselves.
        """
        names = self.table.task_names
        content = {
            "source": self.table.source,
            "rewards": self.table.reward_names,
            "tasks": {name: vars(task) for name, task in zip(names, self.tasks, strict=True)},
            "estimators": {
                name: _estimator_to_json(report, names) for name, report in self.estimators.items()
            },
        }
        if values:
            content["values"] = {
                "rewards": self.table.rewards.tolist(),
                "groups": self.table.groups.tolist(),
                "tasks": [names[task] for task in self.table.tasks],
                "advantages": {n: of.advantages.tolist() for n, of in self.estimators.items()},
            }
        plain: dict[str, Any] = to_json(content)
        return plain


def _estimator_to_json(report: EstimatorReport, names: Sequence[str]) -> dict[str, Any]:
    empty = Normality(0, *[math.nan] * 6)
    tasks = {
        name: {
            **(of.normality or empty)._asdict(),
            "largest": of.largest,
            "share": of.share,
            "undefined": of.undefined,
        }
        for name, of in zip(names, report.tasks, strict=True)
    }
    return {
        "equity": report.equity,
        "outlier_influence": report.influence._asdict(),
        "tasks": tasks,
    }
