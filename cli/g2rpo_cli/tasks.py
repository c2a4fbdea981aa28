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

        from g2rpo.tasks import TASKS

        table = Table("task", "family", "reward kind")
        for task in TASKS.values():
            table.add_row(task.name, task.family, task.reward_kind)
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

    **Examples**

    - `g2rpo tasks show`

    - `g2rpo tasks show -t chart -t ocr --level 3 --seed 7 --output hard.png`
    """
    need("g2rpo tasks", "PIL", "sklearn", "pydantic", extra="cli")
    with reported():
        from g2rpo.run.description import load_description
        from g2rpo.tasks import contact_sheet

        # The description knows which tasks there are, and says so when one is not among them.
        names = load_description(overrides={"data.tasks": task} if task else {}).data.tasks
        output.parent.mkdir(parents=True, exist_ok=True)
        typer.echo(contact_sheet(output, names, level=level, seed=seed, rows=rows))
