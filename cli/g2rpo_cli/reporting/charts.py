"""Interactive figures of a page: Bokeh's models, a plot for each panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from g2rpo_trainer.report.figures import Line, Panel, SmallMultiples
from g2rpo_trainer.report.plots import COLOURS, densities
from g2rpo_trainer.step_log import BIN_EDGES

_HEIGHT = 210  # pixels
_GREEN = "#2ca02c"
# What of a number is seen; the page holds no more digits.
_DIGITS = 5


def figure_plots(figure: SmallMultiples) -> list[Any]:
    """Return a plot for each panel."""
    return [_plot(panel) for panel in figure.panels]


def advantage_plots(
    tasks: Sequence[str], counts: Mapping[str, Mapping[str, Sequence[int]]]
) -> list[Any]:
    """Return a plot for each task: its advantages against the density of N(0, 1)."""
    return [_advantages(task, counts) for task in tasks]


def _plot(panel: Panel) -> Any:
    plot = _figure()
    if panel.band:
        steps, low, high = np.asarray(panel.band, float).T
        if (low == high).all():
            plot.line(steps, _short(low), color=_GREEN, line_alpha=0.6, line_width=2)
        else:
            plot.varea(steps, _short(low), _short(high), fill_color=_GREEN, fill_alpha=0.15)
    for number, line in enumerate(panel.lines):
        _add_line(plot, line, COLOURS[number % len(COLOURS)])
    for number, (label, measured) in enumerate(panel.dots.items()):
        if measured:
            colour = COLOURS[number % len(COLOURS)] if len(panel.dots) > 1 else "#ff7f0e"
            _add_dots(plot, label, measured, colour)
    return plot


def _figure(**options: Any) -> Any:
    from bokeh.models import BasicTicker
    from bokeh.plotting import figure

    plot = figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        # A finger on a chart is to scroll the page, so nothing is dragged.
        tools=[],
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border=4,
        **options,
    )
    plot.xaxis.ticker, plot.yaxis.ticker = (
        BasicTicker(desired_num_ticks=5),
        BasicTicker(desired_num_ticks=4),
    )
    plot.axis.minor_tick_line_color = None
    return plot


def _add_line(plot: Any, line: Line, colour: str) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    columns: dict[str, Any] = {
        "step": line.steps,
        "value": _short(line.values),
        "run": [line.label] * len(line.steps),
    }
    tips = [("step", "@step{0}"), ("mean", "@value{0.000}")]
    if line.raw is not None:
        columns["raw"] = _short(line.raw)
        tips.append(("this step", "@raw{0.000}"))
    if line.low is not None and line.high is not None:
        columns |= {"low": _short(line.low), "high": _short(line.high)}
        tips.append(("95 %", "@low{0.000} to @high{0.000}"))
    source = ColumnDataSource(columns)
    if "raw" in columns:
        plot.line("step", "raw", source=source, color=colour, line_alpha=0.35, line_width=0.8)
    if "low" in columns:
        plot.varea("step", "low", "high", source=source, fill_color=colour, fill_alpha=0.2)
    drawn = plot.line("step", "value", source=source, color=colour, line_width=2.2)
    if line.label:
        tips.insert(0, ("run", "@run"))
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips, mode="vline"))


def _add_dots(
    plot: Any, label: str, measured: Sequence[tuple[float, float, float]], colour: str
) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    steps, low, high = np.asarray(measured, float).T
    middle = (low + high) / 2
    source = ColumnDataSource(
        {"step": steps, "low": _short(low), "high": _short(high), "value": _short(middle)}
    )
    plot.segment("step", "low", "step", "high", source=source, color=colour, line_width=1.5)
    dots = plot.scatter("step", "value", source=source, color=colour, size=6)
    tips = [("held-out", "@value{0.000}"), ("95 %", "@low{0.000} to @high{0.000}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tips))


def _advantages(task: str, counts: Mapping[str, Mapping[str, Sequence[int]]]) -> Any:
    from bokeh.models import HoverTool

    plot = _figure(x_range=(float(BIN_EDGES[0]), float(BIN_EDGES[-1])))
    plot.yaxis.visible = False
    plot.ygrid.visible = False
    plot.y_range.start = 0
    for number, (label, by_task) in enumerate(counts.items()):
        heights = densities(by_task.get(task, ()))
        if heights is None:
            continue
        colour = COLOURS[number % len(COLOURS)]
        columns = {
            "left": BIN_EDGES[:-1],
            "right": BIN_EDGES[1:],
            "top": _short(heights),
            "share": _short(heights * np.diff(BIN_EDGES)),
            "run": [label] * len(heights),
        }
        alone = len(counts) == 1
        bars = plot.quad(
            left="left",
            right="right",
            top="top",
            bottom=0,
            source=columns,
            fill_color=colour,
            line_color=colour,
            fill_alpha=0.45 if alone else 0.12,
            line_alpha=0.0 if alone else 0.9,
        )
        tips = [("from", "@left{0.000} to @right{0.000}"), ("share", "@share{0.0%}")]
        named = [] if alone else [("run", "@run")]
        plot.add_tools(HoverTool(renderers=[bars], tooltips=[*named, *tips]))
    grid = np.linspace(BIN_EDGES[0], BIN_EDGES[-1], 101)
    # Named, so that the page can draw it in the colour of its text.
    normal = np.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    plot.line(grid, _short(normal), color="#808080", line_width=1.6, name="text-colour")
    return plot


def _short(values: Any) -> list[float]:
    """Return numbers with as many digits as can be seen; NaN stays."""
    return [float(f"{value:.{_DIGITS}g}") for value in np.asarray(values, float).tolist()]
