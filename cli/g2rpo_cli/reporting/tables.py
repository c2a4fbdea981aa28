"""The tables of a page: each task before and after, groups against each other, warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from g2rpo.estimates import Estimate
from g2rpo_cli.reporting.groups import Group, mean_of_seeds, paired_difference
from g2rpo_cli.reporting.reading import Run
from g2rpo_trainer.report.watch import spans

# Steps at the end of a run over which its last lengths and entropies are means.
_LAST = 10


class Cell(NamedTuple):
    """A text with the name of its style: ``good``, ``bad``, ``odd``, ``left``, or none."""

    text: str
    mark: str = ""


class Row(NamedTuple):
    """Cells with the number of the task that they are about; None for the mean."""

    task: int | None
    cells: list[Cell]


class Table(NamedTuple):
    """A table with its caption."""

    caption: str
    headings: list[str]
    rows: list[Row]


def result_tables(groups: Sequence[Group]) -> list[Table]:
    """Return the table of each group, and of the differences from the first of them."""
    tables = [
        _of_run(group.runs[0], group.label if len(groups) > 1 else "")
        if len(group.runs) == 1
        else _of_seeds(group)
        for group in groups
    ]
    return [*tables, *(_difference(group, groups[0]) for group in groups[1:])]


def _of_run(run: Run, label: str) -> Table:
    """Return the table of one run, whose intervals are over its held-out items."""
    rows = []
    for number, task in enumerate(run.tasks):
        rows.append(Row(number, [Cell(task), *_rewards(run, task), *_course(run, task)]))
    if "mean" in _shown(run):
        rows.append(Row(None, [Cell("mean"), *_rewards(run, "mean"), *[Cell("")] * 4]))
    caption = (
        f"{label + ': h' if label else 'H'}eld-out reward with 95 % intervals over the items; a "
        "change, item by item, is coloured if its interval leaves out 0. Length, entropy, signal: "
        f"means of the last {_LAST} steps."
    )
    return Table(caption, _headings(), rows)


def _headings() -> list[str]:
    return [
        "task",
        "before",
        "after",
        "change",
        "length (target)",
        "entropy (bounds)",
        "signal",
        "gradient",
    ]


def _of_seeds(group: Group) -> Table:
    """Return the table of several seeds, whose intervals are over the seeds."""
    rows = []
    for number, task in enumerate(_shown(group.runs[0])):
        ends = [_values(group.runs, when).values() for when in ("before", "after")]
        before, after = ([each.get(task, math.nan) for each in end] for end in ends)
        changes = [late - early for early, late in zip(before, after, strict=True)]
        cells = [
            Cell(task),
            Cell(_with_half(*_estimate(mean_of_seeds(before)))),
            Cell(_with_half(*_estimate(mean_of_seeds(after)))),
            _change(*_estimate(mean_of_seeds(changes))),
        ]
        if task == "mean":
            rows.append(Row(None, [*cells, *[Cell("")] * 4]))
        else:
            rows.append(Row(number, [*cells, *_courses(group.runs, task)]))
    seeds = ", ".join(map(str, group.seeds))
    caption = (
        f"{group.label}: means over the seeds {seeds} with Student's 95 % intervals over them; a "
        "change is coloured if its interval leaves out 0."
    )
    return Table(caption, _headings(), rows)


def _difference(group: Group, first: Group) -> Table:
    """Return what a group has more than the first one after training, seed by seed."""
    shared = sorted(set(group.seeds) & set(first.seeds))
    values = _values([*group.runs, *first.runs], "after")
    rows = []
    for number, task in enumerate(_shown(group.runs[0])):
        found = paired_difference(group, first, values, task)
        cell = _change(*_estimate(found))
        rows.append(Row(None if task == "mean" else number, [Cell(task), cell]))
    caption = f"Held-out reward after training, {group.label} less {first.label}, "
    if not shared:
        caption += "cannot be paired: they have no seed in common."
    else:
        caption += (
            f"paired by seed ({', '.join(map(str, shared))}): mean difference with Student's 95 % "
            "interval over the seeds" + (", which takes two." if len(shared) == 1 else ".")
        )
    return Table(caption, ["task", "difference"], rows)


def _shown(run: Run) -> list[str]:
    """Return the tasks, and ``"mean"`` unless some tasks of the run are left out."""
    left_out = set(run.summary.get("after", {})) - {*run.tasks, "mean"}
    return run.tasks if left_out else [*run.tasks, "mean"]


def _values(runs: Sequence[Run], when: str) -> dict[Path, Mapping[str, float]]:
    """Return the held-out rewards of runs that have ended, with the mean over all their tasks."""
    return {
        run.path: {
            task: math.nan if value is None else float(value)
            for task, value in (run.summary.get(when, {}) if run.is_finished else {}).items()
        }
        for run in runs
    }


def _rewards(run: Run, task: str) -> list[Cell]:
    """Return a task's reward before and after a run, and its change; older runs lack intervals."""
    before, after = (
        _values([run], when)[run.path].get(task, math.nan) for when in ("before", "after")
    )
    return [
        Cell(_with_half(before, *_ends(run, "before", task))),
        Cell(_with_half(after, *_ends(run, "after", task))),
        _change(after - before, *_ends(run, "change", task)),
    ]


def _ends(run: Run, when: str, task: str) -> tuple[float, float]:
    """Return the ends of an interval in the summary of a run."""
    ends = run.summary.get(f"interval_{when}", {}).get(task) or (None, None)
    low, high = (math.nan if each is None else float(each) for each in ends)
    return low, high


def _change(mean: float, low: float, high: float) -> Cell:
    """Return a difference, coloured if its interval leaves out 0."""
    return Cell(_with_half(mean, low, high, "+"), "good" if low > 0 else "bad" if high < 0 else "")


def _with_half(mean: float, low: float, high: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "–"
    text = f"{mean:{sign}.3f}"
    return text if math.isnan(low) else f"{text} ± {(high - low) / 2:.3f}"


def _estimate(found: Estimate) -> tuple[float, float, float]:
    """Return an estimate with the ends of its interval."""
    return found.mean, *found.interval()


def _course(run: Run, task: str) -> list[Cell]:
    """Return length, entropy, signal and share of the gradient at the end of a run."""
    target = tuple(_last(run, f"length_target/{end}/{task}", 1) for end in ("low", "high"))
    bounds = run.config.entropy.kept_bounds([task]).get(task, (math.nan, math.nan))
    signal = 1 - _last(run, f"frac_reward_zero_std/{task}")
    return [
        _within(_last(run, f"completions/mean_length/{task}"), target, 1),
        _within(_last(run, f"entropy/{task}"), bounds, 3),
        Cell(_percent(signal)),
        Cell(_percent(_gradient_share(run, task))),
    ]


def _courses(runs: Sequence[Run], task: str) -> list[Cell]:
    """Return the same of several seeds: means, and the worst of the styles."""
    by_run = [_course(run, task) for run in runs]
    names = (f"completions/mean_length/{task}", f"entropy/{task}")
    means = [_known([_last(run, name) for run in runs]) for name in names]
    signal = _known([1 - _last(run, f"frac_reward_zero_std/{task}") for run in runs])
    share = _known([_gradient_share(run, task) for run in runs])
    odd = ["odd" if any(cells[n].mark for cells in by_run) else "" for n in (0, 1)]
    return [
        Cell(_number(means[0], 1), odd[0]),
        Cell(_number(means[1], 3), odd[1]),
        Cell(_percent(signal)),
        Cell(_percent(share)),
    ]


def _within(value: float, ends: tuple[float, ...], digits: int) -> Cell:
    low, high = ends
    text = _number(value, digits)
    if math.isnan(low) or math.isnan(value):
        return Cell(text)
    side = "↓" if value < low else "↑" if value > high else ""
    return Cell(f"{text}{side} ({low:.3g}–{high:.3g})", "odd" if side else "")


def _last(run: Run, name: str, steps: int = _LAST) -> float:
    """Return the mean of a metric over the last steps that have it."""
    return _known([record[name] for record in run.records if name in record][-steps:])


def _gradient_share(run: Run, task: str) -> float:
    measured = [record for record in run.records if f"equity/grad_norm/{task}" in record]
    if not measured:
        return math.nan
    start = "equity/grad_norm/"
    total = sum(value for name, value in measured[-1].items() if name.startswith(start))
    return measured[-1][start + task] / total if total else math.nan


def _known(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def warning_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the warnings of all runs, those that held to the end with what to try."""
    rows = []
    for run in runs:
        bounds = run.config.entropy.kept_bounds(run.tasks)
        for span in spans(run.records, run.tasks, bounds):
            warning, holds = span.warning, span.last is None
            rows.append(
                {
                    "task": run.tasks.index(warning.task),
                    "name": warning.task,
                    "run": str(run.path) if len(runs) > 1 else "",
                    "when": f"step {span.first} to {'the end' if holds else span.last}",
                    "text": warning.text,
                    "advice": warning.advice if holds else "",
                }
            )
    return sorted(rows, key=lambda row: not row["advice"])
