"""Built-in tasks of coloured shapes: grounding, counting, and spatial relations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import ImageTask, between, pick
from .canvas import COLOURS, SHAPES, SIZE, Shape, distinct_names, paint, place_apart

if TYPE_CHECKING:
    from PIL.Image import Image


# Spatial grounding: the box of a named shape, scored by intersection over union (dense).

# Level -> (number of shapes, smallest side, largest side).
_GROUNDING_LEVELS = {1: (1, 20, 36), 2: (2, 18, 28), 3: (3, 14, 22)}


@dataclass(frozen=True)
class GroundingScene:
    """The first shape is the one asked for."""

    shapes: tuple[Shape, ...]


class Grounding(ImageTask[GroundingScene]):
    """Find the box of one shape among up to three."""

    name = "grounding"
    family = "spatial grounding"
    problem_type = "spatial grounding"
    reward_kind = "dense (IoU)"

    def scene(self, rng: np.random.Generator, level: int) -> GroundingScene:
        """Draw shapes that do not touch."""
        count, smallest, largest = _GROUNDING_LEVELS[level]
        return GroundingScene(place_apart(rng, distinct_names(rng, count), smallest, largest))

    def draw(self, scene: GroundingScene) -> Image:
        """Paint the shapes."""
        return paint(scene.shapes)

    def problem(self, scene: GroundingScene) -> str:
        """Ask for the first shape's box."""
        return f"Give the box of the {scene.shapes[0].name} as [x1,y1,x2,y2] in pixels."

    def answer(self, scene: GroundingScene) -> str:
        """Left, top, right, bottom in pixels."""
        return "[" + ",".join(str(edge) for edge in scene.shapes[0].box) + "]"

    def worked(self, scene: GroundingScene) -> str:
        """Say in words roughly where the shape is, which the box then repeats."""
        shape = scene.shapes[0]
        middle_x, middle_y = shape.x + shape.size / 2, shape.y + shape.size / 2
        row = ("top", "middle", "bottom")[int(3 * middle_y / SIZE)]
        column = ("left", "center", "right")[int(3 * middle_x / SIZE)]
        return f"in the {row} {column} of the image is the {shape.name}."


# General VQA: count one kind of shape among distractors, scored by exact match (binary).

# Level -> (most shapes to count, fewest distractors, most distractors).
_COUNTING_LEVELS = {1: (3, 0, 1), 2: (4, 1, 3), 3: (5, 2, 4)}
_GRID_CELL = 18


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
        most, fewest_others, most_others = _COUNTING_LEVELS[level]
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
        return "count: " + ",".join(str(number) for number in range(1, scene.count + 1))


def _in_cell(rng: np.random.Generator, name: tuple[str, str], cell: int) -> Shape:
    size = between(rng, 12, 14)
    x = 1 + _GRID_CELL * (cell % 3) + between(rng, 0, _GRID_CELL - size)
    y = 1 + _GRID_CELL * (cell // 3) + between(rng, 0, _GRID_CELL - size)
    return Shape(*name, x, y, size)


# Spatial reasoning: where one object lies from another, as multiple choice (binary).

_RELATIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
_LETTERS = "ABCD"

# Level -> (smallest side, largest side, most pixels off the axis).
_SPATIAL_LEVELS = {1: (14, 18, 2), 2: (12, 16, 6), 3: (10, 14, 10)}


@dataclass(frozen=True)
class SpatialScene:
    """``first`` lies in direction ``relation`` from ``second``; ``order`` is the options'."""

    first: Shape
    second: Shape
    relation: str
    order: tuple[str, ...]


class Spatial(ImageTask[SpatialScene]):
    """Left, right, above or below, with the options in a random order."""

    name = "spatial"
    family = "spatial reasoning"
    problem_type = "multiple choice"
    reward_kind = "binary"

    def scene(self, rng: np.random.Generator, level: int) -> SpatialScene:
        """Draw two shapes far apart along one axis and close along the other."""
        smallest, largest, off_axis = _SPATIAL_LEVELS[level]
        first, second = distinct_names(rng, 2)
        size = between(rng, smallest, largest)
        relation = pick(rng, list(_RELATIONS))
        along_x, along_y = _RELATIONS[relation]
        reach = between(rng, size + 4, SIZE - size)
        across = between(rng, -off_axis, off_axis)
        dx, dy = (along_x * reach, across) if along_x else (across, along_y * reach)
        x = between(rng, max(0, -dx), SIZE - size - max(0, dx))
        y = between(rng, max(0, -dy), SIZE - size - max(0, dy))
        order = tuple(str(name) for name in rng.permutation(list(_RELATIONS)))
        return SpatialScene(
            first=Shape(*first, x + dx, y + dy, size),
            second=Shape(*second, x, y, size),
            relation=relation,
            order=order,
        )

    def draw(self, scene: SpatialScene) -> Image:
        """Paint both shapes."""
        return paint((scene.second, scene.first))

    def problem(self, scene: SpatialScene) -> str:
        """Ask where the first shape is, seen from the second."""
        options = ", ".join(self.options(scene))
        return f"Where is the {scene.first.name} from the {scene.second.name}? {options}."

    def answer(self, scene: SpatialScene) -> str:
        """Return the letter of the right option."""
        return _LETTERS[scene.order.index(scene.relation)]

    def options(self, scene: SpatialScene) -> list[str]:
        """Return the four relations with their letters."""
        return [f"{letter} {name}" for letter, name in zip(_LETTERS, scene.order, strict=True)]

    def worked(self, scene: SpatialScene) -> str:
        """Name the relation before its letter is looked up."""
        return f"The {scene.first.name} is {scene.relation}."
