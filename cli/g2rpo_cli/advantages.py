"""``g2rpo advantages``: a table of rewards, with the advantages beside them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._rewards import (
    MODULES,
    Decoupled,
    Group,
    Length,
    Reward,
    Task,
    Weight,
    checked_weights,
    read,
    tracked,
)

if TYPE_CHECKING:
    from g2rpo_cli.comparison import Comparison

__all__ = ["advantages"]


def advantages(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="JSONL, CSV or Parquet, by its suffix; `-` reads JSONL from standard input.",
        ),
    ],
    estimator: Annotated[
        str, typer.Option(help="How rewards become advantages: `gaussian`, `grpo`, `rloo`, …")
    ] = "gaussian",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Option of the estimator, such as `task_stage=match`.",
        ),
    ] = None,
    reward: Reward = None,
    group: Group = "group",
    task: Task = None,
    length: Length = None,
    weight: Weight = None,
    decoupled: Decoupled = False,
    column: Annotated[str, typer.Option(help="Name of the new column.")] = "advantage",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, in the format of its suffix; `-`, the default, is stdout.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the output, or the column, if it exists.")
    ] = False,
) -> None:
    """Add a column of advantages to a table of rewards.

    Each row is a response, with its `reward`, the `group` of responses to the same prompt, and
    (if there are several) the prompt's `task`. All columns stay as they are. Without `--output`
    the rows go to stdout, as CSV if they came as CSV, else as JSONL; a summary of each task goes
    to stderr.

    **Examples**

    - `g2rpo advantages rewards.jsonl -o advantages.jsonl`

    - `g2rpo advantages rewards.csv --reward score --group prompt_id > advantages.csv`

    - `g2rpo advantages rewards.parquet -o out.jsonl --set task_stage=match --set resolution=0.05`

    - `g2rpo advantages r.csv --reward accuracy --reward format --weight 0.9 --weight 0.1`
    """
    need("g2rpo advantages", *MODULES, extra="cli")
    with reported():
        from g2rpo_cli.comparison import compare, named_estimator, write_advantages
        from g2rpo_cli.comparison.options import refuse_decoupled
        from g2rpo_cli.comparison.reading import format_of
        from g2rpo_cli.comparison.writing import refuse_clash, refuse_output

        # Everything that can be refused is refused before the estimator runs.
        weights = checked_weights(reward, weight, decoupled)
        function = named_estimator(
            estimator, settings or (), component_weights=weights, decoupled=decoupled
        )
        if decoupled:
            refuse_decoupled(estimator)
        if output == Path("-"):
            output = None
        if output is not None:
            format_of(output)
            refuse_output(output, file, force)
        table = read(file, reward, group, task, length)
        refuse_clash(table, column, force)

        comparison = compare(table, {estimator: function}, influence=False)
        values = comparison.estimators[estimator].advantages
        if output is not None:
            write_advantages(table, values, output, column=column, overwrite=force, track=tracked)
            _summarise(comparison, to_stderr=False)
            return
        _to_stdout(comparison, column, force)


def _to_stdout(comparison: "Comparison", column: str, force: bool) -> None:
    import os

    from g2rpo_cli.comparison import write_advantages

    (report,) = comparison.estimators.values()
    target = sys.stdout.buffer
    try:
        write_advantages(
            comparison.table, report.advantages, target, column=column, overwrite=force
        )
        target.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    _summarise(comparison, to_stderr=True)


def _summarise(comparison: "Comparison", to_stderr: bool) -> None:
    from rich.console import Console

    from g2rpo_cli.comparison.tables import summary_table

    Console(stderr=to_stderr).print(summary_table(comparison))
