"""Plots of a run: rewards, lengths, entropies and gradient norms of each task over its steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from g2rpo_trainer.report.figures import Line, Panel, Records, SmallMultiples, run_figures
from g2rpo_trainer.run_folder import RunFolder
from g2rpo_trainer.step_log import BIN_EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

#: Colours of the lines of several runs, which stay apart for the colour-blind.
COLOURS = ("#1f77b4", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#8c564b")


def draw_plots(folder: RunFolder, tasks: Sequence[str]) -> list[Path]:
    """Draw ``reward.png``, ``length.png``, ``entropy.png`` and ``equity.png`` from the metrics.

    The first three have one panel a task: a thin line for every step, a thick one for a moving
    average, a shaded band for the target or bounds, dots for held-out rewards with their intervals.
    The last shows the norms of the tasks' gradients, if they were measured. Where histograms of the
    advantages were kept, ``advantages.png`` shows them against N(0, 1). Without metrics nothing is
    drawn.
    """
    records = folder.read_metrics()
    if not records:
        return []
    config, path = folder.config, folder.plots_path
    path.mkdir(exist_ok=True)
    figures = run_figures(config, tasks, records, folder.read_summary())
    drawn = [draw_figure(figure, path, ["png"])[0] for figure in figures[:3]]
    if equity := _draw_equity(path / "equity.png", records, tasks):
        drawn.append(equity)
    if counts := folder.read_advantages():
        drawn += draw_advantages(tasks, {"": counts}, path, ["png"])
    return drawn


def draw_figure(figure: SmallMultiples, folder: Path, kinds: Iterable[str]) -> list[Path]:
    """Draw a figure into a folder, a file for each of the kinds ``"png"`` and ``"svg"``."""
    canvas, panels = _canvas(len(figure.panels), sharey=True)
    for panel, axes in zip(figure.panels, panels, strict=False):
        _draw_panel(axes, panel)
        axes.set_title(panel.task, loc="left", fontsize="medium", parse_math=False)
    canvas.supxlabel("step", fontsize="medium")
    canvas.supylabel(figure.label, fontsize="medium")
    _add_legend(canvas, [line.label for line in figure.panels[0].lines])
    return _save(canvas, folder, figure.name, kinds)


def draw_advantages(
    tasks: Sequence[str],
    counts: Mapping[str, Mapping[str, Sequence[int]]],
    folder: Path,
    kinds: Iterable[str],
) -> list[Path]:
    """Draw the distribution of the advantages of each task against N(0, 1).

    `counts` maps the label of a run to what :meth:`RunFolder.read_advantages` returns; `kinds` are
    ``"png"`` and ``"svg"``.
    """
    canvas, panels = _canvas(len(tasks), sharey=False)
    grid = np.linspace(BIN_EDGES[0], BIN_EDGES[-1], 201)
    normal = np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    for task, axes in zip(tasks, panels, strict=False):
        for number, by_task in enumerate(counts.values()):
            if (heights := densities(by_task.get(task, ()))) is not None:
                style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
                style |= {"fill": True, "alpha": 0.5} if len(counts) == 1 else {"linewidth": 1.4}
                axes.stairs(heights, BIN_EDGES, **style)
        axes.plot(grid, normal, color="black", linewidth=1.1)
        axes.set_title(task, loc="left", fontsize="medium", parse_math=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_yticks([])
    canvas.supxlabel("advantage, groups with signal; black: density of N(0, 1)", fontsize="medium")
    _add_legend(canvas, list(counts))
    return _save(canvas, folder, "advantages", kinds)


def densities(counts: Sequence[int]) -> Any:
    """Return the density in each closed bin, (bins,), or None without any advantage."""
    total = sum(counts)
    return np.asarray(counts[1:-1]) / total / np.diff(BIN_EDGES) if total else None


def _canvas(panels: int, *, sharey: bool) -> "tuple[Figure, list[Axes]]":
    # Figure itself, not pyplot: no window, no global state, whatever backend the user has set.
    from matplotlib.figure import Figure

    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    canvas = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    axes = list(canvas.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    return canvas, axes


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    if panel.band:
        steps, low, high = np.asarray(panel.band, dtype=float).T
        if (low == high).all():
            axes.plot(steps, low, color="tab:green", alpha=0.5, linewidth=1.5)
        axes.fill_between(steps, low, high, color="tab:green", alpha=0.12, linewidth=0)
    for number, line in enumerate(panel.lines):
        _draw_line(axes, line, COLOURS[number % len(COLOURS)])
    for number, measured in enumerate(panel.dots.values()):
        if measured:
            steps, low, high = np.asarray(measured, dtype=float).T
            colour = COLOURS[number % len(COLOURS)] if len(panel.dots) > 1 else "tab:orange"
            # Intervals are symmetric.
            middle, half = (low + high) / 2, (high - low) / 2
            axes.errorbar(steps, middle, half, fmt=".", color=colour, capsize=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _draw_line(axes: "Axes", line: Line, colour: str) -> None:
    if line.raw is not None:
        axes.plot(line.steps, line.raw, color=colour, alpha=0.35, linewidth=0.7)
    if line.low is not None and line.high is not None:
        axes.fill_between(line.steps, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(line.steps, line.values, color=colour, linewidth=1.8)


def _add_legend(canvas: "Figure", labels: Sequence[str]) -> None:
    if len(labels) < 2:
        return
    from matplotlib.lines import Line2D

    colours = [COLOURS[number % len(COLOURS)] for number in range(len(labels))]
    handles = [Line2D([], [], color=colour) for colour in colours]
    legend = canvas.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
    _without_formulas(legend)


def _without_formulas(legend: "Legend") -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(canvas: "Figure", folder: Path, name: str, kinds: Iterable[str]) -> list[Path]:
    import matplotlib

    paths = []
    for kind in kinds:
        path = folder / f"{name}.{kind}"
        # Without a date, and with fixed names of its parts, an SVG is the same every time.
        metadata = {"Date": None} if kind == "svg" else {}
        with matplotlib.rc_context({"svg.hashsalt": "g2rpo"}):
            canvas.savefig(path, dpi=120, metadata=metadata)
        paths.append(path)
    return paths


def _draw_equity(path: Path, records: Records, tasks: Sequence[str]) -> Path | None:
    """Draw the norms of the tasks' gradients above their ratio; None if no step was measured."""
    measured = [record for record in records if "equity/ratio" in record]
    if not measured:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    norms, ratio = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for task in tasks:
        _log_line(norms, measured, f"equity/grad_norm/{task}", label=task)
    _log_line(ratio, measured, "equity/ratio", color="black")
    # At 1 the gradients of all tasks are equally large.
    ratio.axhline(1, color="tab:green", linewidth=3, alpha=0.3)
    norms.set_ylabel("norm of the task's gradient")
    ratio.set_ylabel("largest / smallest")
    ratio.set_xlabel("step")
    _without_formulas(norms.legend(ncols=min(3, len(tasks)), fontsize="small", frameon=False))
    figure.savefig(path, dpi=120)
    return path


def _log_line(panel: "Axes", records: Records, name: str, **style: Any) -> None:
    """Draw a metric on a logarithmic scale, with gaps where it is not positive and finite."""
    steps = [record["step"] for record in records]
    values = [record.get(name, math.nan) for record in records]
    shown = [value if 0 < value < math.inf else math.nan for value in values]
    panel.plot(steps, shown, marker=".", linewidth=1.2, **style)
    panel.set_yscale("log")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.5)
