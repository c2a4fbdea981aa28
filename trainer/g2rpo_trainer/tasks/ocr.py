"""OCR: read a short string of handwritten and printed characters, scored by 1 − CER (dense)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import ImageTask, between, pick
from .canvas import COLOURS, PATCH, blank, draw_glyph

if TYPE_CHECKING:
    from PIL.Image import Image

PRINTED = "0123456789ABCDEFGHJKLMNPQRTUVWXYZ"
_LEFT, _TOP = PATCH, 3 * PATCH
_CELL = 2 * PATCH

_COUNT = 3

# Level -> most pixels that a character is off its place, to the side and up or down.
_LEVELS = {1: (0, 1), 2: (2, 4), 3: (3, 8)}


@dataclass(frozen=True)
class Glyph:
    """One character; ``sample`` is its number among the handwritten digits, −1 if printed."""

    text: str
    sample: int
    colour: str
    dx: int
    dy: int


@dataclass(frozen=True)
class OcrScene:
    """Characters from left to right."""

    glyphs: tuple[Glyph, ...]

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The box of every character in pixels: left, top, right, bottom."""
        corners = [
            (_LEFT + position * _CELL + glyph.dx, _TOP + glyph.dy)
            for position, glyph in enumerate(self.glyphs)
        ]
        return [(x, y, x + _CELL, y + _CELL) for x, y in corners]


class Ocr(ImageTask[OcrScene]):
    """Read three characters, half of them handwritten digits."""

    name = "ocr"
    family = "OCR"
    problem_type = "character OCR"
    reward_kind = "dense (1 - CER)"

    def scene(self, rng: np.random.Generator, level: int) -> OcrScene:
        """Draw the characters."""
        return OcrScene(tuple(_glyph(rng, *_LEVELS[level]) for _ in range(_COUNT)))

    def draw(self, scene: OcrScene) -> Image:
        """Paint every character into its cell."""
        from PIL import Image, ImageDraw, ImageOps

        image = blank()
        board = ImageDraw.Draw(image)
        for glyph, box in zip(scene.glyphs, scene.boxes, strict=True):
            if glyph.sample < 0:
                draw_glyph(board, glyph.text, box, glyph.colour)
                continue
            ink = Image.fromarray(_handwritten()[1][glyph.sample]).resize((_CELL, _CELL))
            image.paste(
                ImageOps.colorize(ImageOps.invert(ink), COLOURS[glyph.colour], "white"),
                box[:2],
                mask=ink,
            )
        return image

    def problem(self, scene: OcrScene) -> str:
        """Ask for the text."""
        return "Read the text in the image."

    def answer(self, scene: OcrScene) -> str:
        """Return the characters without spaces."""
        return "".join(glyph.text for glyph in scene.glyphs)

    def worked(self, scene: OcrScene) -> str:
        """Spell the characters one by one."""
        return "I read: " + ",".join(glyph.text for glyph in scene.glyphs)


def _glyph(rng: np.random.Generator, aside: int, upright: int) -> Glyph:
    labels, _ = _handwritten()
    sample = int(rng.integers(len(labels))) if rng.random() < 0.5 else -1
    text = str(labels[sample]) if sample >= 0 else pick(rng, PRINTED)
    return Glyph(
        text=text,
        sample=sample,
        colour=pick(rng, ("black", "blue", "red")),
        dx=between(rng, -aside, aside),
        dy=between(rng, -upright, upright),
    )


@cache
def _handwritten() -> tuple[Any, Any]:
    """Return labels (1797,) and ink (1797, 8, 8) uint8 of scikit-learn's bundled digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.target, (digits.images * (255 / 16)).astype(np.uint8)
