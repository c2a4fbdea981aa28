"""``g2rpo advantages``: a table of rewards, with the advantages beside them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._output import (
    Json,
    number_text,
    print_json,
    print_table,
    refuse_output,
    waiting,
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
    from g2rpo_cli.comparison import Comparison


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
    json: Json = False,
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
    need("g2rpo advantages", "pydantic", "yaml", "rich", extra="cli")
    with reported():
        from g2rpo_cli.comparison import compare, named_estimator, write_advantages
        from g2rpo_cli.comparison.estimators import refuse_decoupled
        from g2rpo_cli.comparison.rewards import rows_to_write
        from g2rpo_cli.comparison.rows import format_of

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
            refuse_output("--output", output, source=file, overwrite=force)
        table = read(file, reward, group, task, length)
        rows_to_write(table, column, force)

        comparison = compare(table, {estimator: function}, influence=False)
        values = comparison.estimators[estimator].advantages
        if output is None:
            with _open_stdout() as stdout:
                write_advantages(table, values, stdout, column=column, overwrite=force)
        else:
            with waiting(f"writing {output}"):
                write_advantages(table, values, output, column=column, overwrite=force)
        if json:
            print_json(comparison.to_json(), to_stderr=output is None)
        else:
            _summarise(comparison, to_stderr=output is None)


@contextmanager
def _open_stdout() -> Iterator[IO[bytes]]:
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _summarise(comparison: "Comparison", *, to_stderr: bool) -> None:
    from g2rpo_trainer.layout import PlainTable

    ((name, report),) = comparison.estimators.items()
    undefined = any(of.undefined for of in report.tasks)
    headings = ["rewards", "groups", "no signal", "variance", "W₁", "max |A|", "share"]
    table = PlainTable("task", numbers=headings + ["NaN"] * undefined)
    for task, rewards, of in zip(
        comparison.table.task_names, comparison.tasks, report.tasks, strict=True
    ):
        counts = map(str, (rewards.rewards, rewards.groups, rewards.groups_without_signal))
        moments = ("–", "–")
        if of.normality is not None:
            moments = number_text(of.normality.variance), number_text(of.normality.w1)
        numbers = (*moments, number_text(of.largest), f"{of.share:.1%}")
        table.add_row(task, *counts, *numbers, *([str(of.undefined)] * undefined))
    print_table(table, f"Advantages by {name}", to_stderr=to_stderr)
