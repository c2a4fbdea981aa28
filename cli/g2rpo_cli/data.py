"""``g2rpo data``: what a source of prompts holds, before anything is trained on it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from g2rpo_cli._errors import need, reported
from g2rpo_cli._options import Settings
from g2rpo_cli._output import Json, print_json

if TYPE_CHECKING:
    from g2rpo_trainer.record import Record

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at data before training on it.",
)

# So much of a question and of an answer fits a line [characters].
_LONGEST = 60


@app.callback()
def describe() -> None:
    """Look at data before training on it."""


@app.command()
def show(
    source: Annotated[
        str,
        typer.Argument(help="`builtin`, a file, a folder, `owner/name`, or `reasoning-gym:NAME`."),
    ],
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Check every record of a source, and show its tasks with the first held-out record of each.

    **Examples**

    - `g2rpo data show train.jsonl`

    - `g2rpo data show folder --set data.mixing.temperature=2 --set data.skip_broken=true`

    - `g2rpo data show reasoning-gym:chain_sum,leg_counting`
    """
    need("g2rpo data", "pydantic", "yaml", "rich", "PIL", "sklearn", extra="cli")
    with reported():
        from rich.console import Console

        from g2rpo_trainer.config import load_config
        from g2rpo_trainer.data import open_source, skipped_text, summary_table

        opened = open_source(load_config(None, {"data.source": source}, settings or []).data)
        # The first records are opened before the summary, which counts what turns out broken.
        firsts = [_in_short(task, opened.held_out_records(task, 1)) for task in opened.tasks]
        summary = opened.summary()
        if json:
            print_json(asdict(summary))
            return
        console = Console()
        console.print(summary_table(summary))
        for text in (*firsts, skipped_text(summary)):
            if text:
                console.print(text, markup=False, highlight=False, soft_wrap=True)


def _in_short(task: str, records: "list[Record]") -> str:
    if not records:
        return f"{task}: no held-out record can be used"
    record = records[0]
    images = [f"[{image.width} × {image.height}] " for image in record.images]
    videos = [
        f"[{video.width} × {video.height}, {video.duration:.1f} s] " for video in record.videos
    ]
    shown = "".join([*images, *videos])
    answer: Any = record.answer
    # The answer of reasoning-gym is an entry, of which its own answer says most.
    answer = answer["answer"] if isinstance(answer, dict) else answer
    return f"{task}: {shown}{_line(record.problem)} → {_line(answer)}"


def _line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
