"""Picture of a comparison: distributions of rewards, and of each estimator's advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from g2rpo._suggest import unknown_name
from g2rpo_cli._output import replaced_file
from g2rpo_cli.comparison.measure import Comparison, TaskReport
from g2rpo_trainer.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = npt.NDArray[np.float64]

#: Drawn by default: the linear rescale, the one that knows tasks, and ours.
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
        File to write, ``.png`` or ``.svg``; an existing one is replaced.
    estimators : sequence of str, optional
        Names of at most five of the comparison's; by default GRPO, EMA-GRPO and G²RPO where they
        were compared, else the first three.

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

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from g2rpo_cli.comparison import compare, topology_rewards
    >>> comparison = compare(topology_rewards(groups=8, size=4), ["grpo", "gaussian"])
    >>> plot_comparison(comparison, Path(mkdtemp(), "compare.svg")).name
    'compare.svg'
    """
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    path = Path(path)
    check_picture(path, estimators)
    names = _chosen(comparison, estimators)
    others = iter(_OTHER_COLOURS)
    tasks = np.argsort([-task.rewards for task in comparison.tasks], kind="stable")[:_MOST_TASKS]
    size = (2.35 * (1 + len(names)) + 0.2, 1.5 * len(tasks) + 0.85)
    layout = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    panels = figure.subplots(len(tasks), 1 + len(names), squeeze=False)
    for row, task in zip(panels, sorted(tasks.tolist()), strict=True):
        _draw_rewards(row[0], comparison, task)
    for column, name in zip(panels.T[1:], names, strict=True):
        colour = _COLOURS.get(name) or next(others)
        for panel, task in zip(column, sorted(tasks.tolist()), strict=True):
            _draw_advantages(panel, comparison, name, task, colour)
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


def _draw_rewards(panel: Axes, comparison: Comparison, task: int) -> None:
    table, of = comparison.table, comparison.tasks[task]
    rewards = table.rewards[table.tasks == task].ravel()
    finite = rewards[np.isfinite(rewards)]
    title = f"{of.groups} groups, {of.rewards} rewards"
    title += f", {of.infinite} infinite" if of.infinite else ""
    _frame(panel, title, name=table.task_names[task])
    if not finite.size:
        _say(panel, "no finite reward")
        return
    low, high = _visible_range(finite)
    heights = _bars(panel, finite, np.linspace(low, high, 36), _REWARD_COLOUR)
    panel.set_ylim(0, 1.35 * heights.max())  # room for an arrow
    panel.locator_params(axis="x", nbins=4)
    _bound(panel, finite, low, high, height=0.72)


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
        _say(panel, f"{of.undefined} NaN" if of.undefined else "no signal")
        return
    if of.undefined:
        panel.text(0, 0.88, f"{of.undefined} NaN", transform=panel.transAxes, fontsize=7.5)
    heights = _bars(panel, values, _BINS, colour)
    for left, height in zip(_BINS, heights, strict=False):
        if height > _TOP:
            middle, share = left + 0.25, f"{height / 2:.0%}"  # bins are half a unit wide
            panel.text(middle, 0.97 * _TOP, share, rotation=90, va="top", ha="center", fontsize=7.5)
    panel.set_ylim(0, _TOP)
    grid = np.linspace(-_LIMIT, _LIMIT, 201)
    panel.plot(grid, np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi), color="black", linewidth=1.1)
    panel.set_xticks([-3, -1.5, 0, 1.5, 3], ["−3", "", "0", "", "3"])
    _bound(panel, values, -_LIMIT, _LIMIT, height=0.32)


def _measures(report: TaskReport) -> str:
    of = report.normality
    if of is None:
        return ""
    numbers = (("var", of.variance), ("W₁", of.w1), ("max", report.largest))
    return "  ".join(
        f"{name} {value:.2f}" if value < 100 else f"{name} {value:.0e}" for name, value in numbers
    )


def _bars(panel: Axes, values: Values, bins: Values, colour: str) -> Values:
    """Draw a histogram and return its densities; values beyond the bins count in its total."""
    counts, _ = np.histogram(values, bins)
    heights: Values = counts / values.size / np.diff(bins)
    panel.bar(bins[:-1], heights, np.diff(bins), align="edge", color=colour, linewidth=0)
    return heights


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


def _bound(panel: Axes, values: Values, low: float, high: float, *, height: float) -> None:
    """Draw from `low` to `high`, with an arrow to the values beyond: how many, and how far."""
    panel.set_xlim(low, high)
    arrow: dict[str, Any] = {"arrowstyle": "->", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    for count, furthest, edge, inside, side in (
        (np.sum(values < low), values.min(), 0.0, 0.16, "left"),
        (np.sum(values > high), values.max(), 1.0, 0.84, "right"),
    ):
        if count:
            ends = (edge, height), (inside, height)
            panel.annotate("", *ends, "axes fraction", "axes fraction", arrowprops=arrow)
            text = f"{count} beyond,\nto {furthest:.3g}".replace("-", "−")
            style: dict[str, Any] = {"ha": side, "fontsize": 7.5, "linespacing": 1.05}
            panel.text(edge, height + 0.05, text, transform=panel.transAxes, **style)
