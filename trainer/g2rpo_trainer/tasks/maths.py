"""Maths: two-operand arithmetic shown in the image, scored by exact match (binary)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .base import ImageTask, between, pick
from .canvas import PATCH, blank, draw_glyph

if TYPE_CHECKING:
    from PIL.Image import Image

_LEFT, _TOP = PATCH, 3 * PATCH

# Level -> largest operands. Results stay between 0 and 99.
_LEVELS = {1: (9, 9), 2: (49, 9), 3: (49, 49)}


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
        largest_a, largest_b = _LEVELS[level]
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
