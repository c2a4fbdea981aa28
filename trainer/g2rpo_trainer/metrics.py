"""The metrics of a step; names are those of TRL, with the task as a suffix."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo import has_signal
from g2rpo.diagnostics import equity
from g2rpo_trainer.scoring import Floats, Rewards

Labels = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]

_BY_TASK = "tasks/"
# Entropies are reported of all rollouts, also of those from which nothing is learned.
_OF_ROLLOUTS = {"entropy", "tasks/entropy"}


def rollout_metrics(
    rewards: Rewards,
    *,
    lengths: Labels,
    ended: Flags,
    entropies: Floats,
    groups: Labels,
    tasks: Labels,
    names: Sequence[str],
    length_reward: Floats | None = None,
    masks_truncated: bool = False,
) -> dict[str, float]:
    """Return the metrics of all rollouts, and of those of each task.

    Parameters
    ----------
    rewards : Rewards
        N scored responses; means leave out NaN, which stands for no reward.
    lengths : array (N,), integer
        In tokens.
    ended : array (N,), bool
        False where the response was cut off at its length limit.
    entropies : array (N,)
        Summed over the tokens, in nats.
    groups, tasks : array (N,), integer
        Prompt, from 0, and number of the task.
    names : sequence of str
        Names of the tasks; a task without rollouts in this step has no metrics.
    length_reward : array (N,), optional
        From 0 to 1; NaN where no length is rewarded.
    masks_truncated : bool
        Whether responses that were cut off are masked in the loss; their share of all tokens is
        then reported.

    Returns
    -------
    dict of str to float
    """
    components = {name: column for name, column in rewards.columns().items() if name != "reward"}
    if length_reward is not None:
        components["length"] = length_reward
    columns = {
        "reward": rewards.reward,
        "reward_std": _group_deviations(rewards.reward, groups),
        "frac_reward_zero_std": ~has_signal(rewards.reward, groups),
        "completions/clipped_ratio": ~ended,
    }
    metrics = {}
    for suffix, rows in _parts(tasks, names):
        for name, column in columns.items():
            metrics[name + suffix] = _mean(column[rows])
        for name, column in components.items():
            metrics |= _spread_of(f"rewards/{name}", suffix, column[rows])
        for name in ("mean", "min", "max"):
            statistic = float(getattr(lengths[rows], name)())
            metrics[f"completions/{name}_length{suffix}"] = statistic
        if masks_truncated:
            masked = lengths[rows & ~ended].sum() / lengths[rows].sum()
            metrics["completions/masked_ratio" + suffix] = float(masked)
        metrics["entropy" + suffix] = float(entropies[rows].sum() / lengths[rows].sum())
    metrics["num_tokens"] = float(lengths.sum())
    return metrics


def equity_metrics(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of gradient equity from the norm of each task's own gradient.

    Examples
    --------
    >>> equity_metrics({"ocr": 1.0, "maths": 2.0})
    {'equity/grad_norm/ocr': 1.0, 'equity/grad_norm/maths': 2.0, 'equity/ratio': 2.0}
    """
    metrics = {f"equity/grad_norm/{task}": norm for task, norm in norms.items()}
    return metrics | {"equity/ratio": equity(norms)}


class Update(NamedTuple):
    """The metrics of one optimiser step.

    Attributes
    ----------
    reported : mapping of str to number or array
        Metrics of :func:`g2rpo.g2rpo_loss` and others by name: scalars, and with the prefix
        ``tasks/`` arrays (num_tasks,).
    task_tokens : array (num_tasks,)
        Response tokens of each task in the mini-batch.
    """

    reported: Mapping[str, Any]
    task_tokens: npt.ArrayLike


def update_metrics(updates: Sequence[Update], tasks: Sequence[str]) -> dict[str, float]:
    """Return the means over the updates; of names that end in ``/max`` the largest value.

    Parameters
    ----------
    updates : sequence of Update
        Optimiser steps on one batch of rollouts.
    tasks : sequence of str
        Names of the tasks.

    Returns
    -------
    dict of str to float
        Metrics by task end in the task's name; their mean is over the updates in which the task
        has tokens, and a task without tokens has none.

    Examples
    --------
    >>> first = Update({"kl": 1.0, "tasks/kl": [1.0, 0.0]}, task_tokens=[5, 0])
    >>> second = Update({"kl": 2.5, "tasks/kl": [2.0, 3.0]}, task_tokens=[5, 5])
    >>> update_metrics([first, second], ["ocr", "maths"])
    {'kl': 1.75, 'kl/ocr': 1.5, 'kl/maths': 3.0}
    """
    columns: dict[str, list[float]] = {}
    largest: dict[str, bool] = {}
    for update in updates:
        for name, value in update.reported.items():
            if name in _OF_ROLLOUTS:
                continue
            for own, number in _named(name, value, update.task_tokens, tasks):
                columns.setdefault(own, []).append(number)
                largest[own] = name.endswith("/max")
    return {
        name: max(values) if largest[name] else sum(values) / len(values)
        for name, values in columns.items()
    }


class Stopwatch:
    """Seconds of each part of a step; a part may be timed several times.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.part("rollout"):
    ...     pass
    >>> list(watch.metrics())
    ['time/rollout', 'step_time']
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside the context to a part."""
        started = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        """Return the seconds of every part, and of all since the stopwatch was made."""
        parts = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        return {**parts, "step_time": time.monotonic() - self._started}


def _group_deviations(rewards: Floats, groups: Labels) -> Floats:
    """Return the standard deviation of each rollout's group; NaN where it has no reward."""
    deviations = np.full_like(rewards, np.nan)
    for group in np.unique(groups):
        rows = groups == group
        values = _present(rewards[rows])
        if len(values):
            deviations[rows] = values.std()
    return deviations


def _spread_of(name: str, suffix: str, values: Floats) -> dict[str, float]:
    values = _present(values)
    if not len(values):
        return {}
    return {
        f"{name}/mean{suffix}": float(values.mean()),
        f"{name}/std{suffix}": float(values.std()),
    }


def _mean(values: npt.NDArray[Any]) -> float:
    values = _present(values.astype(np.float64))
    return float(values.mean()) if len(values) else math.nan


def _present(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    present: npt.NDArray[Any] = values[~np.isnan(values)]
    return present


def _parts(tasks: Labels, names: Sequence[str]) -> Iterator[tuple[str, Flags]]:
    yield "", np.ones_like(tasks, dtype=bool)
    for number, name in enumerate(names):
        rows = tasks == number
        if rows.any():
            yield f"/{name}", rows


def _named(
    name: str, value: Any, task_tokens: npt.ArrayLike, tasks: Sequence[str]
) -> Iterator[tuple[str, float]]:
    if not name.startswith(_BY_TASK):
        yield name, float(value)
        return
    counts = np.asarray(task_tokens)
    for task, number, count in zip(tasks, np.asarray(value), counts, strict=True):
        if count > 0:
            yield f"{name.removeprefix(_BY_TASK)}/{task}", float(number)
