"""The table of a run on a terminal: a row a task, beside what its numbers should be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from g2rpo._shown import clipped, visible
from g2rpo_trainer.report.trend import Trend
from g2rpo_trainer.report.watch import Bounds, TaskWarning

# From the first to go on a narrow terminal to the last.
_OPTIONAL = ("gradient", "signal", "trend", "entropy", "length")
_SHOWN_WARNINGS = 4
_LONGEST_NAME = 24


class LiveTable:
    """The table's rows, which take the metrics of every step; bounds are of entropies, by task."""

    def __init__(self, tasks: Sequence[str], bounds: Mapping[str, Bounds] | None = None) -> None:
        self._tasks = tasks
        self._bounds = bounds or {}
        self._trends = {name: Trend() for name in ("", *(f"/{task}" for task in tasks))}
        # A task that a step lacks keeps what was last known of it.
        self._latest: dict[str, float] = {}

    def step(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step."""
        self._latest |= metrics
        for suffix, trend in self._trends.items():
            trend.add(metrics.get(f"reward{suffix}", math.nan))

    def render(self, console: Console, warnings: Iterable[TaskWarning] = ()) -> Table:
        """Return the table with as many columns as fit, and the warnings below it."""
        columns = ["reward", "length", "entropy", "signal", "gradient", "trend"]
        table = self._table(columns, gap=2)
        unbounded = console.options.update(max_width=1000)
        for name in (None, *_OPTIONAL):
            if Measurement.get(console, unbounded, table).maximum <= console.width:
                break
            if name:
                columns.remove(name)
            table = self._table(columns, gap=1)
        frame = Table.grid()
        frame.add_row(table)
        warnings = list(warnings)
        for warning in warnings[:_SHOWN_WARNINGS]:
            text = f"! {_name(warning.task)}: {warning.text}"
            frame.add_row(Text(text, style="yellow"))
        if len(warnings) > _SHOWN_WARNINGS:
            more = len(warnings) - _SHOWN_WARNINGS
            frame.add_row(Text(f"! and {more} more warnings", style="yellow"))
        return frame

    def _table(self, columns: Sequence[str], gap: int) -> Table:
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
        table.add_column("task", no_wrap=True)
        for column in columns:
            justify = "left" if column == "trend" else "right"
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        shares = self._gradient_shares()
        for task in self._tasks:
            cells: dict[str, Text | str] = {
                "reward": self._reward(f"/{task}"),
                "length": self._length(task),
                "entropy": self._entropy(task),
                "signal": self._signal(f"/{task}"),
                "gradient": _percent(shares.get(task, math.nan)),
                "trend": self._trends[f"/{task}"].line(),
            }
            table.add_row(escape(_name(task)), *(cells[column] for column in columns))
        means: dict[str, Text | str] = {
            "reward": self._reward(""),
            "length": self._number("completions/mean_length", 1),
            "entropy": self._number("entropy"),
            "signal": self._signal(""),
            "gradient": "",
            "trend": self._trends[""].line(),
        }
        table.add_row("mean", *(means[column] for column in columns), style="bold")
        return table

    def _reward(self, suffix: str) -> Text:
        change = self._trends[suffix].change
        text = Text(self._number(f"reward{suffix}"))
        if math.isfinite(change):
            style = "green" if change >= 0.0005 else "red" if change <= -0.0005 else "dim"
            text.append(f" {change:+.3f}", style=style)
        return text

    def _length(self, task: str) -> Text:
        low, high = (self._value(f"length_target/{end}/{task}") for end in ("low", "high"))
        ends = None if math.isnan(low) else (low, high)
        return self._within(f"completions/mean_length/{task}", ends, 1)

    def _entropy(self, task: str) -> Text:
        return self._within(f"entropy/{task}", self._bounds.get(task), 3)

    def _within(self, name: str, ends: Bounds, digits: int) -> Text:
        """Return a value and the ends between which it should be, with an arrow outside them."""
        value, text = self._value(name), Text(self._number(name, digits))
        if ends is None:
            return text
        if value < ends[0] or value > ends[1]:
            # Not by its colour alone, which some do not see.
            text.append("↓" if value < ends[0] else "↑")
            text.stylize("yellow")
        text.append(" {:.3g}–{:.3g}".format(*ends), style="dim")
        return text

    def _signal(self, suffix: str) -> str:
        return _percent(1 - self._value(f"frac_reward_zero_std{suffix}"))

    def _gradient_shares(self) -> dict[str, float]:
        norms = {task: self._value(f"equity/grad_norm/{task}") for task in self._tasks}
        known = {task: norm for task, norm in norms.items() if math.isfinite(norm)}
        total = sum(known.values())
        return {task: norm / total for task, norm in known.items()} if total else {}

    def _value(self, name: str) -> float:
        return self._latest.get(name, math.nan)

    def _number(self, name: str, digits: int = 3) -> str:
        value = self._value(name)
        return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "–"


def _name(task: str) -> str:
    return clipped(visible(" ".join(task.split())), _LONGEST_NAME)
