"""Figures of a run as data: small multiples, a panel a task, for plots and for pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo_trainer.config import TrainConfig

Records = Sequence[Mapping[str, float]]
Floats = npt.NDArray[np.float64]

Band = list[tuple[float, float, float]]
"""Step, lower and upper end; empty for none."""


@dataclass(frozen=True)
class Line:
    """A value over the S steps, of a run or the mean of a group of runs."""

    label: str
    steps: Floats
    values: Floats  # (S,) moving averages over a tenth of the run; NaN for none
    raw: Floats | None = None  # (S,) values of the single steps
    low: Floats | None = None  # (S,) lower end of the interval of a mean over runs
    high: Floats | None = None


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: a line for each run, or group of runs."""

    task: str  # or another title
    lines: list[Line]
    band: Band = field(default_factory=list)  # range in which the values should be
    dots: dict[str, Band] = field(default_factory=dict)  # label of a line -> measurements


@dataclass(frozen=True)
class SmallMultiples:
    """A figure with a panel for each task."""

    name: str  # of its files
    label: str  # of the vertical axis, with the unit
    panels: list[Panel]


def run_figures(
    config: TrainConfig,
    tasks: Sequence[str],
    records: Records,
    summary: Mapping[str, Any],
    label: str = "",
) -> list[SmallMultiples]:
    """Return the figures of one run: reward, length, entropy, and shares of the gradient.

    The summary is that of ``summary.json``, empty before the run has ended; `label` is that of the
    run's lines.
    """
    kept = config.entropy.kept_bounds(tasks)

    def figure(
        name: str, title: str, metric: str, bands: Mapping[str, Band] | None = None
    ) -> SmallMultiples:
        panels = [
            Panel(task, [_line(records, metric.format(task), label)], (bands or {}).get(task, []))
            for task in tasks
        ]
        return SmallMultiples(name, title, panels)

    rewards = figure("reward", "mean reward, held-out as dots", "reward/{}")
    for panel in rewards.panels:
        panel.dots[label] = held_out(records, summary, panel.task)
    targets = {task: _length_target(records, task) for task in tasks}
    bounds: dict[str, Band] = {
        task: [(record["step"], *ends) for record in records] for task, ends in kept.items()
    }
    figures = [
        rewards,
        figure(
            "length", "mean length [tokens], target shaded", "completions/mean_length/{}", targets
        ),
        figure("entropy", "mean entropy [nats], bounds shaded", "entropy/{}", bounds),
    ]
    if gradient := _gradient(records, tasks, label):
        figures.append(gradient)
    return figures


def held_out(records: Records, summary: Mapping[str, Any], task: str) -> Band:
    """Return the interval of each evaluation of a task: before the run, on the way, after it."""
    low, high = (f"eval_reward_{end}/{task}" for end in ("low", "high"))
    ends = [(each["step"], each[low], each[high]) for each in records if low in each]
    for step, when in ((0, "before"), (summary.get("steps"), "after")):
        interval = summary.get(f"interval_{when}", {}).get(task, [None])
        if None not in interval:
            ends.append((step, *interval))
    return sorted(set(ends))


def smoothed(values: Floats) -> Floats:
    """Return the centred moving average over a tenth of the run; NaN counts as absent."""
    if not len(values):
        return values
    window = np.ones(2 * (len(values) // 20) + 1)
    present = np.isfinite(values)
    total = np.convolve(np.where(present, values, 0.0), window, mode="same")
    count = np.convolve(present, window, mode="same")
    smooth: Floats = np.full_like(total, np.nan)
    np.divide(total, count, out=smooth, where=count > 0)
    return smooth


def _line(records: Records, name: str, label: str) -> Line:
    points = [(record["step"], record[name]) for record in records if name in record]
    steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
    return Line(label, steps, smoothed(values), raw=values)


def _length_target(records: Records, task: str) -> Band:
    """Return the target as it was logged, because calibration changes it during the run."""
    low, high = (f"length_target/{end}/{task}" for end in ("low", "high"))
    return [(each["step"], each[low], each[high]) for each in records if low in each]


def _gradient(records: Records, tasks: Sequence[str], label: str) -> SmallMultiples | None:
    """Return each task's share of the gradient; None if no step was measured."""
    measured = [record for record in records if "equity/ratio" in record]
    if not measured:
        return None
    shares = [_shares(record) for record in measured]
    steps = np.asarray([record["step"] for record in measured], float)
    equal = [1 / max(1, len(share)) for share in shares]
    panels = []
    for task in tasks:
        values = np.asarray([share.get(task, math.nan) for share in shares])
        line = Line(label, steps, values)
        band = [(step, each, each) for step, each in zip(steps.tolist(), equal, strict=True)]
        panels.append(Panel(task, [line], band))
    return SmallMultiples("gradient", "share of the gradient norms, equal share as a line", panels)


def _shares(record: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each measured task, whether it is shown or not."""
    start = "equity/grad_norm/"
    norms = {
        name.removeprefix(start): norm
        for name, norm in record.items()
        if name.startswith(start) and math.isfinite(norm)
    }
    total = sum(norms.values())
    return {task: norm / total for task, norm in norms.items()} if total else {}
