"""Spatial reasoning: where one object lies from another, as multiple choice (binary)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import ImageTask, between, pick
from .canvas import SIZE, Shape, distinct_names, paint

if TYPE_CHECKING:
    from PIL.Image import Image

RELATIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
LETTERS = "ABCD"

# Level -> (smallest side, largest side, most pixels off the axis).
_LEVELS = {1: (14, 18, 2), 2: (12, 16, 6), 3: (10, 14, 10)}


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
        smallest, largest, off_axis = _LEVELS[level]
        first, second = distinct_names(rng, 2)
        size = between(rng, smallest, largest)
        relation = pick(rng, list(RELATIONS))
        along_x, along_y = RELATIONS[relation]
        reach = between(rng, size + 4, SIZE - size)
        across = between(rng, -off_axis, off_axis)
        dx, dy = (along_x * reach, across) if along_x else (across, along_y * reach)
        x = between(rng, max(0, -dx), SIZE - size - max(0, dx))
        y = between(rng, max(0, -dy), SIZE - size - max(0, dy))
        order = tuple(str(name) for name in rng.permutation(list(RELATIONS)))
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
        return LETTERS[scene.order.index(scene.relation)]

    def options(self, scene: SpatialScene) -> list[str]:
        """Return the four relations with their letters."""
        return [f"{letter} {name}" for letter, name in zip(LETTERS, scene.order, strict=True)]

    def worked(self, scene: SpatialScene) -> str:
        """Name the relation before its letter is looked up."""
        return f"The {scene.first.name} is {scene.relation}."
