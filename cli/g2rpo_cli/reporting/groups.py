"""Runs that differ in their seeds alone are one group; groups are compared seed by seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo._shown import clipped
from g2rpo.estimates import Estimate, mean_estimate
from g2rpo_cli.reporting.reading import Run
from g2rpo_trainer.report.figures import Band, Line, Panel, SmallMultiples, run_figures

# Keys that do not make another configuration of a run.
_IGNORED = ("seed", "output.")
_SHOWN_KEYS = 3
_LONGEST_LABEL = 60


@dataclass(frozen=True)
class Group:
    """Runs of one configuration with different seeds, in their order."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run.config.seed for run in self.runs]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put the runs of one configuration together, in the order of the first of each.

    A group is labelled by the keys in which its configuration differs from the others. Runs of
    which two have the same configuration and seed are not put together: something else made them
    differ, and each stands for itself under the name of its folder.
    """
    values = [dict(_flat(run.config.model_dump(mode="json"))) for run in runs]
    keys = [
        key
        for key in dict.fromkeys(key for each in values for key in each)
        if not key.startswith(_IGNORED) and len({repr(each.get(key)) for each in values}) > 1
    ]
    members: dict[str, list[int]] = {}
    for number, each in enumerate(values):
        members.setdefault(repr([each.get(key) for key in keys]), []).append(number)
    groups = [
        Group(_label(values[own[0]], keys), [runs[n] for n in own]) for own in members.values()
    ]
    labels = [group.label for group in groups]
    if any(len(set(group.seeds)) < len(group.seeds) for group in groups):
        return [Group(clipped(str(run.path), _LONGEST_LABEL), [run]) for run in runs]
    if len(set(labels)) < len(labels):  # the keys that are shown do not tell them apart
        folders = [", ".join(str(run.path) for run in group.runs) for group in groups]
        groups = [
            replace(group, label=clipped(label, _LONGEST_LABEL))
            for group, label in zip(groups, folders, strict=True)
        ]
    return groups


def _label(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    shown = [f"{key} {values.get(key)}" for key in keys[:_SHOWN_KEYS]]
    if keys in ([], ["estimator.name"]):
        return str(values["estimator.name"])
    return clipped(", ".join(shown), _LONGEST_LABEL)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def mean_of_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean over runs, with its standard error; NaN is left out.

    Examples
    --------
    >>> mean_of_seeds([0.25, 0.75]).mean
    0.5
    """
    return mean_estimate(np.asarray(values, np.float64), np.arange(len(values)))


def paired_difference(
    group: Group, other: Group, values: Mapping[Any, Mapping[str, float]], task: str
) -> Estimate:
    """Return the mean of what `group` has more than `other` with the same seed, in one task.

    Seeds that only one of them has are left out; `values` maps the folder of a run to its values by
    task.
    """
    by_seed = {run.config.seed: values[run.path].get(task, math.nan) for run in other.runs}
    return mean_of_seeds(
        [
            values[run.path].get(task, math.nan) - by_seed[run.config.seed]
            for run in group.runs
            if run.config.seed in by_seed
        ]
    )


def group_figures(groups: Sequence[Group], most_points: int) -> list[SmallMultiples]:
    """Return the figures of all groups: a line each, of several seeds the mean with its interval.

    Of more steps than `most_points` every second, third, … is kept. The groups have the same tasks.
    """
    of_runs = [
        [
            run_figures(run.config, run.tasks, run.records, run.summary, group.label)
            for run in group.runs
        ]
        for group in groups
    ]
    names = [figure.name for figure in max((figures[0] for figures in of_runs), key=len)]
    found = []
    for name in names:
        by_group = [
            [figure for run in figures for figure in run if figure.name == name]
            for figures in of_runs
        ]
        present = [figures for figures in by_group if figures]
        first = present[0][0]
        panels = [
            _panel([[figure.panels[number] for figure in own] for own in present], most_points)
            for number in range(len(first.panels))
        ]
        found.append(SmallMultiples(name, first.label, panels))
    return found


def _panel(by_group: Sequence[Sequence[Panel]], most_points: int) -> Panel:
    """Return one panel with a line for each group."""
    first = by_group[0][0]
    lines = [_mean_line([panel.lines[0] for panel in own], most_points) for own in by_group]
    dots = {
        own[0].lines[0].label: _mean_dots([band for each in own for band in each.dots.values()])
        for own in by_group
        if any(each.dots for each in own)
    }
    bands = [panel.band for own in by_group for panel in own]
    # Targets that differ between the runs would be one green area without a meaning.
    band = first.band if all(_ends(band) == _ends(first.band) for band in bands) else []
    return Panel(first.task, lines, _thinned(band, most_points), dots)


def _ends(band: Band) -> set[tuple[float, float]]:
    return {(low, high) for _, low, high in band}


def _thinned(values: list[Any], most: int) -> list[Any]:
    every = max(1, math.ceil(len(values) / most))
    kept = values[::every]
    return kept if not values or kept[-1] == values[-1] else [*kept, values[-1]]


def _mean_line(lines: Sequence[Line], most_points: int) -> Line:
    if len(lines) == 1:
        line = lines[0]
        chosen = _thinned(list(range(len(line.steps))), most_points)
        raw = None if line.raw is None else line.raw[chosen]
        return Line(line.label, line.steps[chosen], line.values[chosen], raw)
    values = [dict(zip(line.steps.tolist(), line.values.tolist(), strict=True)) for line in lines]
    # A mean over fewer runs would jump where one of them ends.
    shared = sorted(set.intersection(*(set(each) for each in values)))
    steps = _thinned(shared, most_points)
    means = [mean_of_seeds([each[step] for each in values]) for step in steps]
    intervals = np.asarray([mean.interval() for mean in means], np.float64).reshape(-1, 2)
    middle: npt.NDArray[np.float64] = np.asarray([mean.mean for mean in means], np.float64)
    return Line(
        lines[0].label,
        np.asarray(steps, np.float64),
        middle,
        low=intervals[:, 0],
        high=intervals[:, 1],
    )


def _mean_dots(bands: Sequence[Band]) -> Band:
    if len(bands) == 1:
        return bands[0]
    values = [{step: (low + high) / 2 for step, low, high in band} for band in bands]
    shared = sorted(set.intersection(*(set(each) for each in values)))
    means = {step: mean_of_seeds([each[step] for each in values]) for step in shared}
    return [(step, *mean.interval()) for step, mean in means.items()]
