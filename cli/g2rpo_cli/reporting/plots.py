"""The figures of a report as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from g2rpo_cli.reporting.groups import Group, group_figures
from g2rpo_trainer.report.plots import draw_advantages, draw_figure

_KINDS = ("png", "svg")
_MOST_POINTS = 2000


def draw_report(groups: Sequence[Group], folder: Path) -> list[Path]:
    """Draw every figure as PNG and SVG into a folder, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for figure in group_figures(groups, _MOST_POINTS):
        drawn += draw_figure(figure, folder, _KINDS)
    if counts := group_advantages(groups):
        drawn += draw_advantages(groups[0].runs[0].tasks, counts, folder, _KINDS)
    return drawn


def group_advantages(groups: Sequence[Group]) -> dict[str, dict[str, list[int]]]:
    """Return the histograms by group and task, added up over the runs of a group."""
    found: dict[str, dict[str, list[int]]] = {}
    for group in groups:
        for run in group.runs:
            for task, counts in run.advantages.items():
                known = found.setdefault(group.label, {}).get(task, [0] * len(counts))
                found[group.label][task] = [a + b for a, b in zip(known, counts, strict=True)]
    return found
