"""A picture of a comparison: what rewards look like, and what each estimator makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from g2rpo._suggest import unknown_name
from g2rpo_cli.comparison.reports import Comparison, TaskReport
from g2rpo_cli.comparison.writing import replaced_file
from g2rpo_trainer.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_picture", "plot_comparison"]

Values = npt.NDArray[np.float64]

#: What is drawn when nothing is asked for: the linear rescale, the one that knows tasks, and ours.
_MAIN = ("grpo", "ema-grpo", "gaussian")
_MOST_ESTIMATORS = 5
_MOST_TASKS = 12

# Okabe and Ito's colours, which stay apart for the colour-blind.
_REWARD_COLOUR = "#8c8c8c"
_COLOURS = {"grpo": "#e69f00", "ema-grpo": "#56b4e9", "gaussian": "#009e73"}
_OTHER_COLOURS = ("#cc79a7", "#d55e00", "#0072b2", "#f0e442", "#000000")

_LIMIT = 3.75  # advantages are drawn from -limit to limit
# Half a unit wide, one of them centred on 0: narrower bins would show the gaps between the few
# values that a small group can have.
_BINS = np.linspace(-_LIMIT, _LIMIT, 16)
_TOP = 1.0  # the density up to which bars are drawn: 2.5 times the peak of N(0, 1)


def check_picture(path: str | Path, estimators: Sequence[str] | None = None) -> None:
    """Raise `RunError` unless `path` names a kind of picture that can hold so many estimators."""
    if Path(path).suffix.lower() not in (".png", ".svg"):
        raise RunError(f"--picture {path}: must end in .png or .svg")
    if len(estimators or ()) > _MOST_ESTIMATORS:
        raise RunError(
            f"--picture {path}: has room for {_MOST_ESTIMATORS} estimators, "
            f"but {len(estimators or ())} are named"
        )


def plot_comparison(
    comparison: Comparison, path: str | Path, estimators: Sequence[str] | None = None
) -> Path:
    """Draw, task by task, the rewards and each estimator's advantages against N(0, 1).

    Parameters
    ----------
    comparison : Comparison
        From :func:`compare`.
    path : path
        The file to write, ``.png`` or ``.svg``; an existing one is replaced.
    estimators : sequence of str, optional
        Which of the comparison's to draw, five at most; by default GRPO, EMA-GRPO and G²RPO where
        they were compared, else the first three.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    RunError
        If the suffix is another, an estimator was not compared or there are too many, or the file
        cannot be written.

    Notes
    -----
    Advantages are drawn in groups with signal, from -3.75 to 3.75; an arrow tells how many lie
    beyond. Bars are cut at a density of 1, with the share of the values that they hold written
    on them. Beyond twelve tasks only the twelve with the most rewards are drawn.
    """
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    path = Path(path)
    check_picture(path, estimators)
    names = _chosen(comparison, estimators)
    others = iter(_OTHER_COLOURS)
    colours = {name: _COLOURS.get(name) or next(others) for name in names}
    tasks = _largest_tasks(comparison)
    size = (2.35 * (1 + len(names)) + 0.2, 1.5 * len(tasks) + 0.85)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    panels = figure.subplots(len(tasks), 1 + len(names), squeeze=False)
    for row, task in zip(panels, tasks, strict=True):
        _draw_rewards(row[0], comparison, task)
        for panel, name in zip(row[1:], names, strict=True):
            _draw_advantages(panel, comparison, name, task, colours[name])
    for panel, heading in zip(panels[0], ("rewards", *names), strict=True):
        panel.annotate(
            heading.replace("$", r"\$"),
            (0, 1),
            (0, 36),
            "axes fraction",
            textcoords="offset points",
            fontsize=min(11, 220 / len(heading)),  # options make a name long
            fontweight="bold",
        )
    note = "advantages: groups with signal; black line: density of N(0, 1)"
    if len(tasks) < len(comparison.tasks):
        note = f"the {len(tasks)} tasks with the most rewards, of {len(comparison.tasks)}; {note}"
    figure.supxlabel(note, fontsize=8.5)
    kind = path.suffix.lower()[1:]
    # Without a date, and with fixed names of its parts, an SVG is the same every time.
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "g2rpo"}), replaced_file(path) as file:
        figure.savefig(file, format=kind, dpi=110, metadata=metadata)
    return path


def _chosen(comparison: Comparison, estimators: Sequence[str] | None) -> list[str]:
    there = comparison.estimators
    if estimators is None:
        return [name for name in _MAIN if name in there] or list(there)[:3]
    for name in estimators:
        if name not in there:
            raise RunError(unknown_name("estimator", name, there))
    return list(estimators)


def _largest_tasks(comparison: Comparison) -> list[int]:
    order = np.argsort([-task.rewards for task in comparison.tasks], kind="stable")
    return sorted(order[:_MOST_TASKS].tolist())


def _draw_rewards(panel: Axes, comparison: Comparison, task: int) -> None:
    table, of = comparison.table, comparison.tasks[task]
    rewards = table.rewards[table.tasks == task].ravel()
    finite = rewards[np.isfinite(rewards)]
    title = f"{of.groups} groups, {of.rewards} rewards"
    title += f", {of.infinite} infinite" if of.infinite else ""
    _frame(panel, title, name=table.task_names[task])
    if not finite.size:
        return _say(panel, "no finite reward")
    low, high = _visible_range(finite)
    bins = np.linspace(low, high, 36)
    _bars(panel, finite, bins, _REWARD_COLOUR)
    panel.set_xlim(low, high)
    panel.locator_params(axis="x", nbins=4)
    beyond = finite[(finite < low) | (finite > high)]
    if beyond.size:
        furthest = beyond[np.argmax(np.abs(beyond - np.median(finite)))]
        _arrow(panel, beyond.size, furthest, bool(furthest > high), height=0.72)
    return None


def _visible_range(values: Values) -> tuple[float, float]:
    """Return the range to draw: everything, unless few values stretch it more than threefold."""
    low, high = float(values.min()), float(values.max())
    core_low, core_high = np.quantile(values, [0.01, 0.99]).tolist()
    room = max(core_high - core_low, 1e-12)
    low = low if low > core_low - 2 * room else core_low - 0.1 * room
    high = high if high < core_high + 2 * room else core_high + 0.1 * room
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_advantages(
    panel: Axes, comparison: Comparison, name: str, task: int, colour: str
) -> None:
    report = comparison.estimators[name]
    of = report.tasks[task]
    own = (comparison.table.tasks == task) & comparison.has_signal
    values = report.advantages[own]
    values = values[~np.isnan(values)]
    _frame(panel, _measures(of))
    if not values.size:
        return _say(panel, f"{of.undefined} NaN" if of.undefined else "no signal")
    if of.undefined:
        panel.text(0, 0.88, f"{of.undefined} NaN", transform=panel.transAxes, fontsize=7.5)
    _bars(panel, values, _BINS, colour, cut=_TOP)
    grid = np.linspace(-_LIMIT, _LIMIT, 201)
    panel.plot(grid, np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi), color="black", linewidth=1.1)
    panel.set_xlim(-_LIMIT, _LIMIT)
    panel.set_xticks([-3, -1.5, 0, 1.5, 3], ["−3", "", "0", "", "3"])
    for side, beyond in ((False, values < -_LIMIT), (True, values > _LIMIT)):
        if beyond.any():
            furthest = values[np.argmax(values) if side else np.argmin(values)]
            _arrow(panel, int(beyond.sum()), furthest, side, height=0.32)
    return None


def _measures(report: TaskReport) -> str:
    of = report.normality
    if of is None:
        return ""
    numbers = (("var", of.variance), ("W₁", of.w1), ("max", report.largest))
    return "  ".join(
        f"{name} {value:.2f}" if value < 100 else f"{name} {value:.0e}" for name, value in numbers
    )


def _bars(panel: Axes, values: Values, bins: Values, colour: str, cut: float | None = None) -> None:
    counts, _ = np.histogram(values, bins)
    shares = counts / values.size
    heights = shares / np.diff(bins)
    panel.bar(bins[:-1], heights, np.diff(bins), align="edge", color=colour, linewidth=0)
    if cut is None:
        panel.set_ylim(0, 1.35 * heights.max())  # room for an arrow
        return
    panel.set_ylim(0, cut)
    for centre, height, share in zip((bins[1:] + bins[:-1]) / 2, heights, shares, strict=True):
        if height > cut:
            panel.text(
                centre, 0.97 * cut, f"{share:.0%}", rotation=90, va="top", ha="center", fontsize=7.5
            )


def _frame(panel: Axes, line: str, name: str = "") -> None:
    short = name if len(name) <= 32 else f"{name[:31]}…"
    # A dollar sign would start a formula.
    title = f"{short}\n{line}".replace("$", r"\$")
    panel.set_title(title.lstrip("\n"), loc="left", fontsize=8.5, pad=9)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.set_yticks([])
    panel.tick_params(labelsize=8)


def _say(panel: Axes, text: str) -> None:
    panel.set_xticks([])
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", fontsize=9)


def _arrow(panel: Axes, count: int, furthest: float, right: bool, *, height: float) -> None:
    """Point to the values outside a panel, and tell how many they are and how far they go."""
    arrow: dict[str, Any] = {"arrowstyle": "->", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    edge, inside = (1.0, 0.84) if right else (0.0, 0.16)
    panel.annotate(
        "", (edge, height), (inside, height), "axes fraction", "axes fraction", arrowprops=arrow
    )
    number = f"{furthest:.3g}".replace("-", "−")
    text = f"{count} beyond,\nto {number}"
    side = "right" if right else "left"
    panel.text(
        edge,
        height + 0.05,
        text,
        transform=panel.transAxes,
        ha=side,
        fontsize=7.5,
        linespacing=1.05,
    )
