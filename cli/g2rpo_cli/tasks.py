"""``g2rpo tasks``: what the built-in tasks are and what they look like."""

from pathlib import Path
from typing import Annotated

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import Tasks

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List the built-in tasks, or look at them.",
)


@app.command("list")
def list_tasks() -> None:
    """List the built-in tasks with the family that each stands for and its kind of reward."""
    need("g2rpo tasks", "PIL", "sklearn", "rich", extra="cli")
    with reported():
        from rich.console import Console
        from rich.table import Table

        from g2rpo_trainer.tasks import TASKS_BY_SOURCE

        table = Table("task", "source", "family", "reward kind")
        for source, tasks in TASKS_BY_SOURCE.items():
            for task in tasks.values():
                table.add_row(task.name, source, task.family, task.reward_kind)
        Console().print(table)


@app.command()
def show(
    task: Tasks = None,
    level: Annotated[
        int | None, typer.Option(min=1, max=3, help="Difficulty. Default: each level in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the items.")] = 0,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Items of each task.")] = 3,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="PNG file to write.", dir_okay=False)
    ] = Path("tasks.png"),
) -> None:
    """Draw items of each task into one picture, with their questions and answers.

    Items of text tasks are printed; of a mixture only the tasks of images go into the picture.

    **Examples**

    - `g2rpo tasks show`

    - `g2rpo tasks show -t chart -t ocr --level 3 --seed 7 --output hard.png`

    - `g2rpo tasks show -t sorting -t box`
    """
    need("g2rpo tasks", "PIL", "sklearn", "rich", extra="cli")
    with reported():
        from g2rpo._suggest import unknown_name
        from g2rpo_trainer.errors import RunError
        from g2rpo_trainer.tasks import TASKS, TEXT_TASKS, contact_sheet

        names = list(dict.fromkeys(task or TASKS))
        for name in names:
            if name not in {**TASKS, **TEXT_TASKS}:
                raise RunError(unknown_name("task", name, [*TASKS, *TEXT_TASKS]))
        if pictured := [name for name in names if name in TASKS]:
            output.parent.mkdir(parents=True, exist_ok=True)
            typer.echo(contact_sheet(output, pictured, level=level, seed=seed, rows=rows))
        if written := [name for name in names if name in TEXT_TASKS]:
            _print_items(written, level, seed, rows)


def _print_items(names: list[str], level: int | None, seed: int, rows: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from g2rpo_trainer.tasks import LEVELS, TEXT_TASKS

    table = Table("task", "level", "question", "answer")
    for name in names:
        for row in range(rows):
            item_level = level or LEVELS[row % len(LEVELS)]
            record = TEXT_TASKS[name].item(seed, row, level=item_level).record
            table.add_row(name, str(item_level), escape(record.problem), escape(record.answer))
    Console().print(table)
