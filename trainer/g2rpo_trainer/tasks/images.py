"""Six tasks of images, one for each family of the paper, each with its kind of reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import ImageTask, between, pick
from .canvas import (
    COLOURS,
    PATCH,
    SHAPES,
    SIZE,
    Shape,
    blank,
    distinct_names,
    draw_glyph,
    paint,
    place_apart,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# Top-left corner of the first character in the tasks that write text.
_LEFT, _TOP = PATCH, 3 * PATCH


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
        return f"The {shape.name} is in the {row} {column} of the image."


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
        return "I count: " + ",".join(str(number) for number in range(1, scene.count + 1))


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


TASKS: dict[str, ImageTask[Any]] = {
    task.name: task for task in (Grounding(), Counting(), Spatial(), Chart(), Ocr(), Maths())
}
"""Name -> task of images."""
