"""Box: the box of a shape that is described by corner and size, scored by IoU (dense)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_trainer.tasks.base import Task, between
from g2rpo_trainer.tasks.canvas import Shape, distinct_names, place_apart

# Level -> (number of shapes, smallest side, largest side) in pixels.
_LEVELS = {1: (1, 20, 36), 2: (2, 18, 28), 3: (3, 14, 22)}


@dataclass(frozen=True)
class BoxScene:
    """``shapes`` in the order of their description; ``asked`` is the place of the one asked for."""

    shapes: tuple[Shape, ...]
    asked: int


class Box(Task[BoxScene]):
    """Find the box of one shape among up to three."""

    name = "box"
    family = "spatial grounding"
    problem_type = "spatial grounding"
    reward_kind = "dense (IoU)"

    def scene(self, rng: np.random.Generator, level: int) -> BoxScene:
        """Draw shapes that do not touch."""
        count, smallest, largest = _LEVELS[level]
        shapes = place_apart(rng, distinct_names(rng, count), smallest, largest)
        return BoxScene(shapes, asked=between(rng, 0, count - 1))

    def problem(self, scene: BoxScene) -> str:
        """Describe every shape by its corner and size, and ask for one box."""
        described = "; ".join(
            f"{shape.name} at {shape.x},{shape.y} size {shape.size}" for shape in scene.shapes
        )
        asked = scene.shapes[scene.asked].name
        return f"{described}. Give the box of the {asked} as [x1,y1,x2,y2]."

    def answer(self, scene: BoxScene) -> str:
        """Left, top, right, bottom in pixels."""
        return "[" + ",".join(str(edge) for edge in scene.shapes[scene.asked].box) + "]"

    def worked(self, scene: BoxScene) -> str:
        """Add the size to both coordinates of the corner."""
        shape = scene.shapes[scene.asked]
        return ",".join(f"{start}+{shape.size}={start + shape.size}" for start in shape.box[:2])
