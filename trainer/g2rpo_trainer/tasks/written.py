"""Built-in tasks of what is drawn or written in an image: charts, characters, and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import ImageTask, between, pick
from .canvas import COLOURS, PATCH, SIZE, blank, draw_glyph

if TYPE_CHECKING:
    from PIL.Image import Image

# Top-left corner of the first character in the tasks that write text.
_LEFT, _TOP = PATCH, 3 * PATCH


# Chart: the value of one bar or point, scored by mean relative accuracy (stepped).

# Level -> (number of values, top of the axis). Full height is 48 pixels.
_CHART_LEVELS = {1: (3, 12), 2: (4, 24), 3: (5, 48)}
_CHART_HEIGHT = 48
_CHART_BASE = SIZE - 4


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
            left, top = 6 + position * width, _CHART_BASE - self.height(value)
            bottom = _CHART_BASE if self.kind == "bar" else min(top + 5, _CHART_BASE)
            boxes.append((left, top, left + width - 2, bottom))
        return boxes

    def height(self, value: int) -> int:
        """Return how high a value stands above the axis, in pixels."""
        return value * _CHART_HEIGHT // self.top


class Chart(ImageTask[ChartScene]):
    """Read a bar chart or a dot plot."""

    name = "chart"
    family = "chart"
    problem_type = "regression"
    reward_kind = "stepped (MRA)"

    def scene(self, rng: np.random.Generator, level: int) -> ChartScene:
        """Draw the values."""
        count, top = _CHART_LEVELS[level]
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
        board.line((3, 2, 3, _CHART_BASE), fill=COLOURS["black"])
        board.line((3, _CHART_BASE, SIZE - 1, _CHART_BASE), fill=COLOURS["black"])
        for quarter in range(5):
            y = _CHART_BASE - quarter * _CHART_HEIGHT // 4
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
        colour, height = scene.colours[scene.asked], scene.height(scene.values[scene.asked])
        return f"The {colour} {scene.kind} is {height}/{_CHART_HEIGHT}*{scene.top}."


# OCR: a short string of handwritten and printed characters, scored by 1 − CER (dense).

PRINTED = "0123456789ABCDEFGHJKLMNPQRTUVWXYZ"
_GLYPH_SIZE = 2 * PATCH

# Level -> most pixels that a character is off its place, to the side and up or down.
_OCR_LEVELS = {1: (0, 1), 2: (2, 4), 3: (3, 8)}


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
            (_LEFT + position * _GLYPH_SIZE + glyph.dx, _TOP + glyph.dy)
            for position, glyph in enumerate(self.glyphs)
        ]
        return [(x, y, x + _GLYPH_SIZE, y + _GLYPH_SIZE) for x, y in corners]


class Ocr(ImageTask[OcrScene]):
    """Read three characters, half of them handwritten digits."""

    name = "ocr"
    family = "OCR"
    problem_type = "character OCR"
    reward_kind = "dense (1 - CER)"

    def scene(self, rng: np.random.Generator, level: int) -> OcrScene:
        """Draw the characters."""
        return OcrScene(tuple(_glyph(rng, *_OCR_LEVELS[level]) for _ in range(3)))

    def draw(self, scene: OcrScene) -> Image:
        """Paint every character into its cell."""
        from PIL import Image, ImageDraw, ImageOps

        image = blank()
        board = ImageDraw.Draw(image)
        for glyph, box in zip(scene.glyphs, scene.boxes, strict=True):
            if glyph.sample < 0:
                draw_glyph(board, glyph.text, box, glyph.colour)
                continue
            ink = Image.fromarray(_handwritten()[1][glyph.sample]).resize(
                (_GLYPH_SIZE, _GLYPH_SIZE)
            )
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


# Maths: two-operand arithmetic shown in the image, scored by exact match (binary).

# Level -> largest operands. Results stay between 0 and 99.
_MATHS_LEVELS = {1: (9, 9), 2: (49, 9), 3: (49, 49)}


@dataclass(frozen=True)
class MathsScene:
    """The expression ``a operator b``."""

    a: int
    operator: str
    b: int
    colour: str

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """The box of every character in pixels: left, top, right, bottom."""
        lefts = [_LEFT + position * PATCH for position in range(len(self.expression))]
        return [(left, _TOP, left + PATCH, _TOP + 2 * PATCH) for left in lefts]

    @property
    def expression(self) -> str:
        """The expression as it is drawn."""
        return f"{self.a}{self.operator}{self.b}"

    @property
    def result(self) -> int:
        """The value of the expression."""
        return self.a + self.b if self.operator == "+" else self.a - self.b


class Maths(ImageTask[MathsScene]):
    """Addition and subtraction of numbers below 50."""

    name = "maths"
    family = "maths"
    problem_type = "numerical"
    reward_kind = "binary"

    def scene(self, rng: np.random.Generator, level: int) -> MathsScene:
        """Draw operands whose result is not negative."""
        largest_a, largest_b = _MATHS_LEVELS[level]
        a = between(rng, 0 if level == 1 else 10, largest_a)
        b = between(rng, 0 if level < 3 else 10, largest_b)
        operator = pick(rng, "+-")
        if operator == "-" and a < b:
            a, b = b, a
        return MathsScene(a, operator, b, colour=pick(rng, ("black", "blue", "red")))

    def draw(self, scene: MathsScene) -> Image:
        """Write the expression."""
        from PIL import ImageDraw

        image = blank()
        board = ImageDraw.Draw(image)
        for glyph, box in zip(scene.expression, scene.boxes, strict=True):
            draw_glyph(board, glyph, box, scene.colour)
        return image

    def problem(self, scene: MathsScene) -> str:
        """Ask for the value."""
        return "What is the value of the expression in the image?"

    def answer(self, scene: MathsScene) -> str:
        """Return the value."""
        return str(scene.result)

    def worked(self, scene: MathsScene) -> str:
        """Read the operands; with two digits, calculate tens and ones apart, then together."""
        if scene.a < 10:
            return f"{scene.expression}={scene.result}"
        tens = replace(scene, a=scene.a // 10 * 10, b=scene.b // 10 * 10)
        ones = replace(scene, a=scene.a % 10, b=scene.b % 10)
        steps = [f"{part.expression}={part.result}" for part in (tens, ones)]
        together = f"{tens.result}{ones.result:+d}={scene.result}"
        return f"{scene.expression}: " + ",".join([*steps, together])
