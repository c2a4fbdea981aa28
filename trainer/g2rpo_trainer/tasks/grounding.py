"""Spatial grounding: the box of a named shape, scored by intersection over union (dense)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .base import ImageTask
from .canvas import SIZE, Shape, distinct_names, paint, place_apart

if TYPE_CHECKING:
    from PIL.Image import Image

# Level -> (number of shapes, smallest side, largest side).
_LEVELS = {1: (1, 20, 36), 2: (2, 18, 28), 3: (3, 14, 22)}


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
        count, smallest, largest = _LEVELS[level]
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
        return f"The {shape.name} is in the {row} {column} of the image."
