"""``g2rpo tasks``: what the built-in tasks are and what they look like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import Tasks
from g2rpo_cli._output import Json, print_json, print_table, refuse_output

# Magnification of the items, lines of text below each, and their height and margins in pixels.
_ZOOM, _TEXT_LINES, _LINE, _MARGIN = 3, 6, 15, 12

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List the built-in tasks, or look at them.",
)


@app.command("list")
def list_tasks(json: Json = False) -> None:
    """List the built-in tasks with the family that each stands for and its kind of reward."""
    need("g2rpo tasks", "PIL", "sklearn", "rich", extra="cli")
    with reported():
        from g2rpo_trainer.tasks import TASKS_BY_SOURCE

        rows = [
            (task.name, source, task.family, task.reward_kind)
            for source, tasks in TASKS_BY_SOURCE.items()
            for task in tasks.values()
        ]
        _print_rows(rows, ("task", "source", "family", "reward kind"), json)


@app.command()
def show(
    task: Tasks = None,
    level: Annotated[
        int | None, typer.Option(min=1, max=3, help="Difficulty. Default: each level in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the items.")] = 0,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Items of each task.")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path(
        "tasks.png"
    ),
    json: Json = False,
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
        from g2rpo_trainer.tasks import TASKS, TEXT_TASKS

        names = list(dict.fromkeys(task or TASKS))
        for name in names:
            if name not in {**TASKS, **TEXT_TASKS}:
                raise RunError(unknown_name("task", name, [*TASKS, *TEXT_TASKS]))
        refuse_output("--output", output)
        if pictured := [name for name in names if name in TASKS]:
            if output.suffix.lower() != ".png":
                raise RunError(f"--output {output}: must end in .png")
            output.parent.mkdir(parents=True, exist_ok=True)
            _draw_items(output, pictured, level, seed, rows)
            typer.echo(output, err=json)
        written = [name for name in names if name in TEXT_TASKS]
        if written or json:
            items = _items(written, level, seed, rows)
            _print_rows(items, ("task", "level", "question", "answer"), json)


def _draw_items(path: Path, names: list[str], level: int | None, seed: int, rows: int) -> None:
    """Write a picture with one column a task and the items below each other."""
    from textwrap import wrap

    from PIL import Image, ImageDraw

    from g2rpo_trainer.tasks import LEVELS, TASKS
    from g2rpo_trainer.tasks.canvas import SIZE, font

    side = SIZE * _ZOOM
    width, height = side + 2 * _MARGIN, side + _TEXT_LINES * _LINE + 2 * _MARGIN
    sheet = Image.new("RGB", (width * len(names), height * rows + 20), "#f4f4f2")
    board = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        task, left = TASKS[name], column * width + _MARGIN
        board.text((left, 6), f"{name}: {task.reward_kind}", font=font(13), fill="black")
        for row in range(rows):
            record = task.item(seed, row, level=level or LEVELS[row % len(LEVELS)]).record
            top = 20 + row * height + _MARGIN
            picture = record.images[0].resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
            lines = [*wrap(record.problem, 27)[: _TEXT_LINES - 1], f"Answer: {record.answer}"]
            text = "\n".join(lines)
            board.multiline_text((left, top + side + 4), text, font=font(12), fill="black")
    sheet.save(path)


def _items(names: list[str], level: int | None, seed: int, rows: int) -> list[tuple[Any, ...]]:
    from g2rpo_trainer.tasks import LEVELS, TEXT_TASKS

    items = []
    for name in names:
        for row in range(rows):
            item_level = level or LEVELS[row % len(LEVELS)]
            record = TEXT_TASKS[name].item(seed, row, level=item_level).record
            items.append((name, item_level, record.problem, record.answer))
    return items


def _print_rows(rows: Sequence[tuple[Any, ...]], headings: tuple[str, ...], json: bool) -> None:
    if json:
        print_json([dict(zip(headings, row, strict=True)) for row in rows])
        return
    from g2rpo_trainer.layout import PlainTable

    table = PlainTable(*headings)
    for row in rows:
        table.add_row(*map(str, row))
    print_table(table)
