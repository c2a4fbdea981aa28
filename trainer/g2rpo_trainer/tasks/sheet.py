"""A contact sheet: what the built-in tasks look like, with their questions and answers."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from .base import LEVELS, Split
from .canvas import SIZE, font
from .images import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

_ZOOM = 3
_TEXT_LINES = 6
_LINE = 15
_MARGIN = 12
_CELL_WIDTH = SIZE * _ZOOM + 2 * _MARGIN
_CELL_HEIGHT = SIZE * _ZOOM + _TEXT_LINES * _LINE + 2 * _MARGIN


def contact_sheet(
    path: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    level: int | None = None,
    seed: int = 0,
    rows: int = 3,
    split: Split = "train",
) -> Path:
    """Write a picture with one column a task and ``rows`` items below each other.

    Parameters
    ----------
    path : path
        The PNG file to write.
    tasks : sequence of str, optional
        Names of tasks, by default all six.
    level : int, optional
        Difficulty of all items. By default row i shows level i, in turn.
    seed : int
        Seed of the items.
    rows : int
        Items a task.
    split : {"train", "heldout"}
        From which side to draw.

    Returns
    -------
    Path
        The file written.
    """
    from PIL import Image, ImageDraw

    names = list(tasks or TASKS)
    sheet = Image.new("RGB", (_CELL_WIDTH * len(names), _CELL_HEIGHT * rows + 20), "#f4f4f2")
    board = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        task = TASKS[name]
        left = column * _CELL_WIDTH + _MARGIN
        board.text((left, 6), f"{name}: {task.reward_kind}", font=font(13), fill="black")
        for row in range(rows):
            item_level = level or LEVELS[row % len(LEVELS)]
            record = task.item(seed, row, split=split, level=item_level).record
            top = 20 + row * _CELL_HEIGHT + _MARGIN
            picture = record.images[0].resize((SIZE * _ZOOM,) * 2, Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
            lines = [*wrap(record.problem, 27)[: _TEXT_LINES - 1], f"Answer: {record.answer}"]
            text = "\n".join(lines)
            board.multiline_text((left, top + SIZE * _ZOOM + 4), text, font=font(12), fill="black")
    target = Path(path)
    sheet.save(target)
    return target
