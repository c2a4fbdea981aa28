"""Chart: the value of one bar or point, scored by mean relative accuracy (stepped)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import ImageTask, between, pick
from .canvas import COLOURS, SIZE, blank

if TYPE_CHECKING:
    from PIL.Image import Image

# Level -> (number of values, top of the axis). Full height is 48 pixels.
_LEVELS = {1: (3, 12), 2: (4, 24), 3: (5, 48)}
_HEIGHT = 48
_BASE = SIZE - 4


@dataclass(frozen=True)
class ChartScene:
    """``values`` are in the axis' units; ``asked`` is the position of the one in question."""

    kind: str
    colours: tuple[str, ...]
    values: tuple[int, ...]
    top: int
    asked: int

    @property
    def marks(self) -> list[tuple[int, int, int, int]]:
        """The box of every bar or point in pixels: left, top, right, bottom."""
        width = (SIZE - 6) // len(self.values)
        boxes = []
        for position, value in enumerate(self.values):
            left, top = 6 + position * width, _BASE - self.height(value)
            bottom = _BASE if self.kind == "bar" else min(top + 5, _BASE)
            boxes.append((left, top, left + width - 2, bottom))
        return boxes

    def height(self, value: int) -> int:
        """Return how high a value stands above the axis, in pixels."""
        return value * _HEIGHT // self.top


class Chart(ImageTask[ChartScene]):
    """Read a bar chart or a dot plot."""

    name = "chart"
    family = "chart"
    problem_type = "regression"
    reward_kind = "stepped (MRA)"

    def scene(self, rng: np.random.Generator, level: int) -> ChartScene:
        """Draw the values."""
        count, top = _LEVELS[level]
        colours = rng.permutation(list(COLOURS))[:count]
        return ChartScene(
            kind=pick(rng, ("bar", "point")),
            colours=tuple(str(colour) for colour in colours),
            values=tuple(between(rng, max(1, top // 8), top) for _ in range(count)),
            top=top,
            asked=between(rng, 0, count - 1),
        )

    def draw(self, scene: ChartScene) -> Image:
        """Paint the axis, with a tick at every quarter, and the values."""
        from PIL import ImageDraw

        image = blank()
        board = ImageDraw.Draw(image)
        board.line((3, 2, 3, _BASE), fill=COLOURS["black"])
        board.line((3, _BASE, SIZE - 1, _BASE), fill=COLOURS["black"])
        for quarter in range(5):
            y = _BASE - quarter * _HEIGHT // 4
            board.line((0, y, 3, y), fill=COLOURS["black"])
        for colour, (left, top, right, bottom) in zip(scene.colours, scene.marks, strict=True):
            board.rectangle((left, top, right - 1, bottom - 1), fill=COLOURS[colour])
        return image

    def problem(self, scene: ChartScene) -> str:
        """Ask for one value; the top of the axis is named, since ticks carry no numbers."""
        colour = scene.colours[scene.asked]
        return (
            f"The axis goes from 0 to {scene.top}. What is the value of the {colour} {scene.kind}?"
        )

    def answer(self, scene: ChartScene) -> str:
        """Return the value."""
        return str(scene.values[scene.asked])

    def worked(self, scene: ChartScene) -> str:
        """Measure the height against the whole axis before scaling it."""
        height = scene.height(scene.values[scene.asked])
        return f"The {scene.colours[scene.asked]} {scene.kind} is {height}/{_HEIGHT}*{scene.top}."
