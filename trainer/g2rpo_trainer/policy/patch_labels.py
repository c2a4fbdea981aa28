"""What stands on each patch of an image, and where: the targets of the cold start's first phase."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np

from g2rpo_trainer.tasks.canvas import COLOURS, PATCH, SHAPES, SIZE
from g2rpo_trainer.tasks.images import (
    PRINTED,
    ChartScene,
    CountingScene,
    GroundingScene,
    MathsScene,
    OcrScene,
    SpatialScene,
)

GRID = SIZE // PATCH
Box = tuple[int, int, int, int]

CLASSES = [
    "",
    *PRINTED,
    *"+-",
    *(f"{colour} {kind}" for colour in COLOURS for kind in (*SHAPES, "bar", "point")),
]


class PatchLabels(NamedTuple):
    """Targets of the 49 patches of one image, row by row.

    Attributes
    ----------
    kinds : array (49,), int64
        Index in :data:`CLASSES` of what covers the patch.
    boxes : array (49, 4), float32
        Left, top, right and bottom of what covers it, or of the patch itself, from 0 to 1.
    """

    kinds: np.ndarray
    boxes: np.ndarray


def patch_labels(scene: Any) -> PatchLabels:
    """Return the targets for the image of a built-in task's scene."""
    kinds = np.zeros((GRID, GRID), dtype=np.int64)
    low = PATCH * np.arange(GRID)
    high = low + PATCH
    boxes = np.empty((GRID, GRID, 4), dtype=np.float32)
    boxes[..., 0], boxes[..., 2] = low, high
    boxes[..., 1], boxes[..., 3] = low[:, None], high[:, None]
    for name, box in _things(scene):
        left, top, right, bottom = box
        # Two pixels of a thing on a patch are enough to see it.
        rows, columns = (high > top + 1) & (low < bottom - 1), (high > left + 1) & (low < right - 1)
        kinds[np.ix_(rows, columns)] = CLASSES.index(name)
        boxes[np.ix_(rows, columns)] = box
    return PatchLabels(kinds.ravel(), boxes.reshape(-1, 4) / SIZE)


@singledispatch
def _things(scene: Any) -> list[tuple[str, Box]]:
    """Return name and box of everything in the image, in pixels."""
    raise TypeError(f"scene is a {type(scene).__name__}; it must be a scene of a built-in task")


@_things.register
def _(scene: GroundingScene | CountingScene) -> list[tuple[str, Box]]:
    return [(shape.name, shape.box) for shape in scene.shapes]


@_things.register
def _(scene: SpatialScene) -> list[tuple[str, Box]]:
    return [(shape.name, shape.box) for shape in (scene.first, scene.second)]


@_things.register
def _(scene: ChartScene) -> list[tuple[str, Box]]:
    names = [f"{colour} {scene.kind}" for colour in scene.colours]
    return list(zip(names, scene.marks, strict=True))


@_things.register
def _(scene: OcrScene) -> list[tuple[str, Box]]:
    return list(zip((glyph.text for glyph in scene.glyphs), scene.boxes, strict=True))


@_things.register
def _(scene: MathsScene) -> list[tuple[str, Box]]:
    return list(zip(scene.expression, scene.boxes, strict=True))
