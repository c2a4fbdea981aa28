"""``g2rpo compare``: every estimator on the same rewards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._output import (
    Json,
    number_text,
    print_json,
    print_table,
    refuse_output,
    waiting,
    write_json,
)
from g2rpo_cli._rewards import (
    Decoupled,
    Group,
    Length,
    Reward,
    Task,
    Weight,
    checked_weights,
    read,
)

if TYPE_CHECKING:
    from g2rpo_cli.comparison import Comparison, TaskReport, TaskRewards


def compare(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="JSONL, CSV or Parquet, by its suffix; `-` reads JSONL from standard input. "
            "Default: the paper's example and four built-in shapes of reward.",
        ),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            "-e",
            metavar="NAME[:KEY=VALUE,…]",
            help="Estimator, with options if need be; repeat it for several. Default: all.",
        ),
    ] = None,
    reward: Reward = None,
    group: Group = "group",
    task: Task = None,
    length: Length = None,
    weight: Weight = None,
    decoupled: Decoupled = False,
    picture: Annotated[
        Path | None, typer.Option(help="PNG or SVG file for a picture of the distributions.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for all numbers.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare what estimators make of the same rewards, task by task.

    For each task: mean and variance of the advantages, their distances W₁ and W₂ to N(0, 1) (0 at
    best), the largest, and the share of all squared advantages that the task holds. Then equity,
    the size of the advantages of the largest task over that of the smallest (1 at best), and how
    much one extreme reward changes the advantages of other responses.

    **Examples**

    - `g2rpo compare --picture compare.png` (built-in rewards)

    - `g2rpo compare rewards.jsonl --output compare.json`

    - `g2rpo compare rewards.csv -e grpo -e gaussian -e gaussian:task_stage=match`
    """
    need("g2rpo compare", "pydantic", "yaml", "rich", extra="cli")
    if picture is not None:
        need("g2rpo compare --picture", "matplotlib", extra="cli")
    with reported():
        from g2rpo_cli.comparison import compare as run
        from g2rpo_cli.comparison import named_estimator, plot_comparison, topology_rewards
        from g2rpo_cli.comparison.picture import check_picture

        weights = checked_weights(reward, weight, decoupled)
        estimator = list(dict.fromkeys(estimator or [])) or None
        for name in estimator or []:
            named_estimator(name)
        if picture is not None:
            check_picture(picture, estimator)
        refuse_output("--picture", picture, source=file)
        refuse_output("--output", output, source=file)
        if file is None:
            _refuse_columns([*(reward or []), *filter(None, [task, length]), group])

        table = topology_rewards() if file is None else read(file, reward, group, task, length)
        with waiting("comparing"):
            comparison = run(table, estimator, component_weights=weights, decoupled=decoupled)
        figure = None if file else _figure(estimator)
        content: dict[str, Any] = comparison.to_json()
        if figure is not None:
            content["figure"] = figure.to_json(values=True)
        if json:
            print_json(content)
        else:
            _show(comparison, figure)
        if estimator is None:
            _say_what_is_left_out(comparison, to_stderr=json)
        if picture is not None:
            plot_comparison(comparison, picture, estimator)
            typer.echo(picture, err=json)
        if output is not None:
            write_json(output, content)
            typer.echo(output, err=json)


def _refuse_columns(named: list[str]) -> None:
    from g2rpo_trainer.errors import RunError

    for column in named:
        if column != "group":  # the default
            raise RunError(f"column {column!r} is of no file; name the FILE to compare on")


def _figure(estimators: list[str] | None) -> "Comparison":
    """Return the paper's example; matching alone, as the paper shows it, comes last."""
    from g2rpo import ESTIMATORS
    from g2rpo_cli.comparison import compare as run
    from g2rpo_cli.comparison import figure_rewards

    return run(figure_rewards(), estimators or [*ESTIMATORS, "gaussian:task_stage=null"])


def _show(comparison: "Comparison", figure: "Comparison | None") -> None:
    from g2rpo_trainer.layout import PlainTable

    if figure is not None:
        _show_figure(figure)
    undefined = any(
        of.undefined for report in comparison.estimators.values() for of in report.tasks
    )
    for index, (name, rewards) in enumerate(
        zip(comparison.table.task_names, comparison.tasks, strict=True)
    ):
        headings = ["mean", "variance", "W₁", "W₂", "max |A|", "share"] + ["NaN"] * undefined
        table = PlainTable("estimator", numbers=headings)
        for estimator, report in comparison.estimators.items():
            of = report.tasks[index]
            table.add_row(estimator, *_measures(of), *([str(of.undefined)] * undefined))
        table.add_section()
        table.add_row("N(0, 1)", "0", "1", "0", "0", "", f"{rewards.share:.1%}", style="dim")
        print_table(table, f"{name}: {_describe(rewards)}")
    headings = ["equity", "in its group", "in its task", "in other tasks"]
    table = PlainTable("estimator", numbers=headings)
    for estimator, report in comparison.estimators.items():
        table.add_row(estimator, *map(number_text, (report.equity, *report.influence)))
    print_table(table, "Between tasks, and what one reward that becomes huge changes for others")


def _show_figure(figure: "Comparison") -> None:
    """Print a table a group: its rewards, and the advantages by each estimator below them."""
    from g2rpo_trainer.layout import PlainTable

    title = "The paper's Figure 2: the advantages of four groups, each a task"
    for task in range(4):
        own = figure.table.tasks == task
        table = PlainTable("rewards", numbers=[f"{x:g}" for x in figure.table.rewards[own]])
        for estimator, report in figure.estimators.items():
            table.add_row(estimator, *(number_text(x, digits=4) for x in report.advantages[own]))
        print_table(table, title)
        title = ""


def _measures(of: "TaskReport") -> list[str]:
    moments = ["–"] * 4
    if of.normality is not None:
        normality = of.normality
        numbers = (normality.mean, normality.variance, normality.w1, normality.w2)
        moments = list(map(number_text, numbers))
    return [*moments, number_text(of.largest), f"{of.share:.1%}"]


def _describe(of: "TaskRewards") -> str:
    parts = [f"{of.rewards} reward{'s' * (of.rewards != 1)}"]
    parts += [f"{of.groups} group{'s' * (of.groups != 1)}"]
    parts += [f"{of.groups_without_signal} without signal"]
    parts += [f"{of.absent} absent"] * (of.absent > 0)
    parts += [f"{of.infinite} infinite"] * (of.infinite > 0)
    return ", ".join(parts)


def _say_what_is_left_out(comparison: "Comparison", *, to_stderr: bool) -> None:
    from g2rpo import ESTIMATORS

    if missing := [name for name in ESTIMATORS if name not in comparison.estimators]:
        names = ", ".join(missing)
        typer.echo(f"not compared without a column of lengths (--length): {names}", err=to_stderr)
