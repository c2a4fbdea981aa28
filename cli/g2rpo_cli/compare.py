"""``g2rpo compare``: every estimator on the same rewards."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._rewards import (
    LONG,
    MODULES,
    Decoupled,
    Group,
    Length,
    Reward,
    Task,
    Weight,
    bar,
    checked_weights,
    read,
    tracked,
)

if TYPE_CHECKING:
    from g2rpo_cli.comparison import Comparison

__all__ = ["compare"]


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
    need("g2rpo compare", *MODULES, extra="cli")
    with reported():
        from g2rpo_cli.comparison import compare as run
        from g2rpo_cli.comparison import topology_rewards
        from g2rpo_cli.comparison.options import named_estimator
        from g2rpo_cli.comparison.picture import check_picture

        weights = checked_weights(reward, weight, decoupled)
        estimator = list(dict.fromkeys(estimator or [])) or None
        for name in estimator or []:
            named_estimator(name)
        if picture is not None:
            check_picture(picture, estimator)
        for option, path in (("--picture", picture), ("--output", output)):
            _refuse(option, path, file)
        if file is None:
            _refuse_columns([*(reward or []), *filter(None, [task, length]), group])

        table = topology_rewards() if file is None else read(file, reward, group, task, length)
        comparison = run(
            table,
            estimator,
            component_weights=weights,
            decoupled=decoupled,
            track=bar if len(table) >= LONG else tracked,
        )
        figure = None if file else _figure(estimator)
        _show(comparison, figure)
        if estimator is None:
            _say_what_is_left_out(comparison)
        _write(comparison, figure, estimator, picture, output)


def _refuse(option: str, path: Path | None, file: str | None) -> None:
    from g2rpo_trainer.errors import RunError

    if path is None:
        return
    if path.is_dir():
        raise RunError(f"{option} {path}: is a folder; name a file")
    if file is not None and path.exists() and Path(file).exists() and path.samefile(file):
        raise RunError(f"{option} {path}: is the file to read; name another")


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
    from rich.console import Console

    from g2rpo_cli.comparison.tables import between_tasks_table, figure_tables, task_tables

    console = Console(highlight=False)
    if figure is not None:
        console.print(
            "The paper's Figure 2: the advantages of four groups, each a task", style="bold"
        )
        for of_group in figure_tables(figure):
            console.print(of_group)
    for of_task in task_tables(comparison):
        console.print(of_task)
    console.print(between_tasks_table(comparison))


def _say_what_is_left_out(comparison: "Comparison") -> None:
    from g2rpo import ESTIMATORS

    if missing := [name for name in ESTIMATORS if name not in comparison.estimators]:
        typer.echo(f"not compared without a column of lengths (--length): {', '.join(missing)}")


def _write(
    comparison: "Comparison",
    figure: "Comparison | None",
    estimators: list[str] | None,
    picture: Path | None,
    output: Path | None,
) -> None:
    import json

    from g2rpo_cli.comparison import plot_comparison
    from g2rpo_cli.comparison.writing import replaced_file

    if picture is not None:
        typer.echo(plot_comparison(comparison, picture, estimators))
    if output is not None:
        content: dict[str, Any] = comparison.to_json()
        if figure is not None:
            content["figure"] = figure.to_json(values=True)
        with replaced_file(output) as file:
            file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
        typer.echo(output)
