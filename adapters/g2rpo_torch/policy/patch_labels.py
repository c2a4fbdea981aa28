"""What stands on each patch of an image, for the first phase of the cold start."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np

from g2rpo.tasks import maths, ocr
from g2rpo.tasks.canvas import COLOURS, PATCH, SHAPES, SIZE, Shape
from g2rpo.tasks.chart import ChartScene
from g2rpo.tasks.grounding import GroundingScene
from g2rpo.tasks.spatial import SpatialScene
from g2rpo.tasks.vqa import CountingScene

GRID = SIZE // PATCH
CLASSES = ["", *ocr.PRINTED, "+", "-", *(f"{c} {k}" for c in COLOURS for k in SHAPES)]


@singledispatch
def patch_labels(scene: Any) -> np.ndarray:
    """Return the class of every patch, (49,) int64, or −1 where there is nothing to say."""
    raise TypeError(f"scene is a {type(scene).__name__}; it must be a scene of a built-in task")


@patch_labels.register
def _(scene: ChartScene) -> np.ndarray:
    return np.full(GRID * GRID, -1)


@patch_labels.register
def _(scene: ocr.OcrScene) -> np.ndarray:
    return _glyphs([glyph.text for glyph in scene.glyphs], columns=2)


@patch_labels.register
def _(scene: maths.MathsScene) -> np.ndarray:
    return _glyphs(list(scene.expression), columns=1)


@patch_labels.register
def _(scene: GroundingScene | CountingScene) -> np.ndarray:
    return _shapes(scene.shapes)


@patch_labels.register
def _(scene: SpatialScene) -> np.ndarray:
    return _shapes((scene.first, scene.second))


def _glyphs(glyphs: list[str], columns: int) -> np.ndarray:
    labels = np.zeros((GRID, GRID), dtype=np.int64)
    top, left = ocr.TOP // PATCH, ocr.LEFT // PATCH
    for position, glyph in enumerate(glyphs):
        start = left + position * columns
        labels[top : top + 2, start : start + columns] = CLASSES.index(glyph)
    return labels.ravel()


def _shapes(shapes: tuple[Shape, ...]) -> np.ndarray:
    labels = np.zeros((GRID, GRID), dtype=np.int64)
    centres = PATCH * np.arange(GRID) + PATCH / 2
    for shape in shapes:
        left, top, right, bottom = shape.box
        rows = (centres > top - 2) & (centres < bottom + 2)
        columns = (centres > left - 2) & (centres < right + 2)
        labels[np.ix_(rows, columns)] = CLASSES.index(shape.name)
    return labels.ravel()
