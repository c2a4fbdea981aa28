"""The drawing board of the built-in tasks: a white square, six colours, three shapes, a font."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .base import between, pick

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

SIZE = 56
"""Side of every image in pixels."""

PATCH = 8
"""Glyphs stand on a grid of this many pixels, which is also the embedded policy's patch size."""

COLOURS = {
    "red": (215, 25, 28),
    "green": (26, 150, 65),
    "blue": (44, 80, 215),
    "orange": (245, 150, 20),
    "purple": (140, 45, 160),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True)
class Shape:
    """A filled shape; ``x``, ``y`` is its top-left corner and ``size`` its side, in pixels."""

    colour: str
    kind: str
    x: int
    y: int
    size: int

    @property
    def name(self) -> str:
        """Colour and kind, as questions call the shape."""
        return f"{self.colour} {self.kind}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge in pixels."""
        return self.x, self.y, self.x + self.size, self.y + self.size

    def overlaps(self, other: Shape, gap: int = 1) -> bool:
        """Tell whether the two boxes come closer than ``gap`` pixels."""
        left, top, right, bottom = self.box
        x1, y1, x2, y2 = other.box
        return left < x2 + gap and x1 < right + gap and top < y2 + gap and y1 < bottom + gap

    def draw(self, board: ImageDraw) -> None:
        """Paint the shape so that it touches all four sides of its box."""
        left, top, right, bottom = self.box
        edges = (left, top, right - 1, bottom - 1)
        fill = COLOURS[self.colour]
        if self.kind == "circle":
            board.ellipse(edges, fill=fill)
        elif self.kind == "square":
            board.rectangle(edges, fill=fill)
        else:
            middle = (left + right - 1) / 2
            board.polygon([(middle, top), (right - 1, bottom - 1), (left, bottom - 1)], fill=fill)


def blank() -> Image:
    """Return a new white image."""
    from PIL import Image

    return Image.new("RGB", (SIZE, SIZE), "white")


def paint(shapes: tuple[Shape, ...]) -> Image:
    """Return an image of the shapes, later ones on top."""
    from PIL import ImageDraw

    image = blank()
    board = ImageDraw.Draw(image)
    for shape in shapes:
        shape.draw(board)
    return image


def place_apart(
    rng: np.random.Generator, names: list[tuple[str, str]], smallest: int, largest: int
) -> tuple[Shape, ...]:
    """Place one shape per (colour, kind), none touching another."""
    while True:
        placed: list[Shape] = []
        for colour, kind in names:
            size = between(rng, smallest, largest)
            x, y = between(rng, 0, SIZE - size), between(rng, 0, SIZE - size)
            placed.append(Shape(colour, kind, x, y, size))
        if not any(a.overlaps(b) for i, a in enumerate(placed) for b in placed[:i]):
            return tuple(placed)


def distinct_names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Return ``count`` different (colour, kind) pairs."""
    names: list[tuple[str, str]] = []
    while len(names) < count:
        name = (pick(rng, list(COLOURS)), pick(rng, SHAPES))
        if name not in names:
            names.append(name)
    return names


@cache
def font(size: int) -> FreeTypeFont | ImageFont:
    """Return Pillow's own font, which needs no file on the machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def draw_glyph(board: ImageDraw, glyph: str, box: tuple[int, int, int, int], colour: str) -> None:
    """Write one character into the middle of a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    board.text(
        ((left + right) / 2, (top + bottom) / 2),
        glyph,
        font=font(bottom - top - 1),
        fill=COLOURS[colour],
        anchor="mm",
    )
