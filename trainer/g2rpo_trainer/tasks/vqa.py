"""General VQA: count one kind of shape among distractors, scored by exact match (binary)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import ImageTask, between, pick
from .canvas import COLOURS, SHAPES, Shape, paint

if TYPE_CHECKING:
    from PIL.Image import Image

# Level -> (most shapes to count, fewest distractors, most distractors).
_LEVELS = {1: (3, 0, 1), 2: (4, 1, 3), 3: (5, 2, 4)}
_CELL = 18


@dataclass(frozen=True)
class CountingScene:
    """``count`` of the shapes are the asked-for ``colour`` and ``kind``."""

    shapes: tuple[Shape, ...]
    colour: str
    kind: str
    count: int


class Counting(ImageTask[CountingScene]):
    """Count, as in: how many red circles are there."""

    name = "vqa"
    family = "general VQA"
    problem_type = "numerical"
    reward_kind = "binary"

    def scene(self, rng: np.random.Generator, level: int) -> CountingScene:
        """Put every shape into a cell of its own; distractors share the colour or the kind."""
        most, fewest_others, most_others = _LEVELS[level]
        colour, kind = pick(rng, list(COLOURS)), pick(rng, SHAPES)
        count = between(rng, 1, most)
        names = [(colour, kind)] * count
        for _ in range(between(rng, fewest_others, most_others)):
            other_colour = pick(rng, [c for c in COLOURS if c != colour])
            other_kind = pick(rng, [k for k in SHAPES if k != kind])
            names.append(pick(rng, [(other_colour, kind), (colour, other_kind)]))
        cells = rng.permutation(9)[: len(names)]
        shapes = tuple(
            _in_cell(rng, name, int(cell)) for name, cell in zip(names, cells, strict=True)
        )
        return CountingScene(shapes, colour, kind, count)

    def draw(self, scene: CountingScene) -> Image:
        """Paint the shapes."""
        return paint(scene.shapes)

    def problem(self, scene: CountingScene) -> str:
        """Ask for the number of one kind."""
        return f"How many {scene.colour} {scene.kind}s are in the image?"

    def answer(self, scene: CountingScene) -> str:
        """Return the number."""
        return str(scene.count)

    def worked(self, scene: CountingScene) -> str:
        """Count aloud."""
        return "I count: " + ",".join(str(number) for number in range(1, scene.count + 1))


def _in_cell(rng: np.random.Generator, name: tuple[str, str], cell: int) -> Shape:
    size = between(rng, 12, 14)
    x = 1 + _CELL * (cell % 3) + between(rng, 0, _CELL - size)
    y = 1 + _CELL * (cell // 3) + between(rng, 0, _CELL - size)
    return Shape(*name, x, y, size)
