"""Comparisons as tables for a terminal of 80 columns: one a task, so that any number fits."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from g2rpo_cli.comparison.reports import Comparison, TaskReport, TaskRewards

__all__ = ["between_tasks_table", "figure_tables", "summary_table", "task_tables"]


def task_tables(comparison: Comparison) -> Iterator[Group]:
    """Yield a table a task: what each estimator makes of its rewards, and what would be ideal."""
    undefined = any(
        of.undefined for report in comparison.estimators.values() for of in report.tasks
    )
    for index, (name, rewards) in enumerate(
        zip(comparison.table.task_names, comparison.tasks, strict=True)
    ):
        table = _table("estimator")
        for heading in ("mean", "variance", "W₁", "W₂", "max |A|", "share"):
            table.add_column(heading, justify="right", no_wrap=True)
        if undefined:
            table.add_column("NaN", justify="right", no_wrap=True)
        for estimator, report in comparison.estimators.items():
            of = report.tasks[index]
            numbers = [*_moments(of), _number(of.largest), f"{of.share:.1%}"]
            table.add_row(escape(estimator), *numbers, *([str(of.undefined)] * undefined))
        table.add_section()
        table.add_row("N(0, 1)", "0", "1", "0", "0", "", f"{rewards.share:.1%}", style="dim")
        yield _titled(f"{name}: {_describe(rewards)}", table)


def between_tasks_table(comparison: Comparison) -> Group:
    """Return the table of what holds between tasks: equity, and the reach of an outlier."""
    title = "Between tasks, and what one reward that becomes huge changes for others"
    table = _table("estimator")
    for heading in ("equity", "in its group", "in its task", "in other tasks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for estimator, report in comparison.estimators.items():
        table.add_row(escape(estimator), _number(report.equity), *map(_number, report.influence))
    return _titled(title, table)


def figure_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield a table a group: its rewards, and the advantages by each estimator below them."""
    of = comparison.table
    for task in range(len(of.task_names)):
        own = of.tasks == task
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column("rewards", no_wrap=True)
        for reward in of.rewards[own]:
            table.add_column(f"{reward:g}", justify="right", no_wrap=True, min_width=8)
        for estimator, report in comparison.estimators.items():
            numbers = [f"{_zero(value):.4f}" for value in report.advantages[own]]
            table.add_row(escape(estimator), *numbers)
        yield table


def summary_table(comparison: Comparison) -> Group:
    """Return one table of all tasks for a single estimator."""
    ((name, report),) = comparison.estimators.items()
    undefined = any(of.undefined for of in report.tasks)
    table = _table("task")
    headings = ("rewards", "groups", "no signal", "variance", "W₁", "max |A|", "share")
    for heading in headings + ("NaN",) * undefined:
        table.add_column(heading, justify="right", no_wrap=True)
    for task, rewards, of in zip(
        comparison.table.task_names, comparison.tasks, report.tasks, strict=True
    ):
        counts = map(str, (rewards.rewards, rewards.groups, rewards.groups_without_signal))
        _, variance, w1, _ = _moments(of)
        numbers = (variance, w1, _number(of.largest), f"{of.share:.1%}")
        table.add_row(escape(task), *counts, *numbers, *([str(of.undefined)] * undefined))
    return _titled(f"Advantages by {name}", table)


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", min_width=10)
    return table


def _titled(title: str, table: Table) -> Group:
    # Not the table's own title, which would be folded to the table's width.
    return Group(Text(title, style="bold"), table)


def _describe(of: TaskRewards) -> str:
    parts = [_count(of.rewards, "reward"), _count(of.groups, "group")]
    parts += [f"{of.groups_without_signal} without signal"]
    parts += [f"{of.absent} absent"] * (of.absent > 0)
    parts += [f"{of.infinite} infinite"] * (of.infinite > 0)
    return ", ".join(parts)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _moments(report: TaskReport) -> tuple[str, str, str, str]:
    of = report.normality
    if of is None:
        return "–", "–", "–", "–"
    return _number(of.mean), _number(of.variance), _number(of.w1), _number(of.w2)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:.1e}" if abs(value) >= 1e4 else f"{_zero(value):.3f}"


def _zero(value: float) -> float:
    """Return 0 for what would be shown as -0.000."""
    return 0.0 if abs(value) < 5e-5 else value
