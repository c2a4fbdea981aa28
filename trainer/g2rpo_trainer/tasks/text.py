"""Four built-in text tasks, for models that read text only.

Each is the text form of a task of images, with another kind of reward: arithmetic is binary, a
described box dense, a described chart stepped, and a sorted sequence has the heavy tail of 1 − CER.
Items are drawn, split and recorded as those of images are.

Examples
--------
>>> from g2rpo_trainer.tasks import TEXT_TASKS
>>> record = TEXT_TASKS["arithmetic"].item(seed=0, index=0).record
>>> record.problem, record.answer
('What is 33+3?', '36')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Task, between, pick
from .canvas import COLOURS, Shape, distinct_names, place_apart
from .written import Maths, MathsScene

# Arithmetic: the expressions of the maths task, written out; scored by exact match (binary).

_MATHS = Maths()


class Arithmetic(Task[MathsScene]):
    """Addition and subtraction of numbers below 50."""

    name = "arithmetic"
    family = "maths"
    problem_type = "numerical"
    reward_kind = "binary"

    def scene(self, rng: np.random.Generator, level: int) -> MathsScene:
        """Draw operands whose result is not negative."""
        return _MATHS.scene(rng, level)

    def problem(self, scene: MathsScene) -> str:
        """Ask for the value."""
        return f"What is {scene.expression}?"

    def answer(self, scene: MathsScene) -> str:
        """Return the value."""
        return _MATHS.answer(scene)

    def worked(self, scene: MathsScene) -> str:
        """With two digits, calculate tens and ones apart, then together."""
        return _MATHS.worked(scene)


# Box: the box of a shape that is described by corner and size, scored by IoU (dense).

# Level -> (number of shapes, smallest side, largest side) in pixels.
_BOX_LEVELS = {1: (1, 20, 36), 2: (2, 18, 28), 3: (3, 14, 22)}


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
        count, smallest, largest = _BOX_LEVELS[level]
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


# Bars: the spread of a described bar chart, scored by mean relative accuracy (stepped).

# Level -> (number of bars, largest value).
_BARS_LEVELS = {1: (3, 12), 2: (4, 24), 3: (5, 48)}


@dataclass(frozen=True)
class BarsScene:
    """Bars from left to right: their colours and values, not all of them equal."""

    colours: tuple[str, ...]
    values: tuple[int, ...]


class Bars(Task[BarsScene]):
    """Tell by how much the highest of three to five bars exceeds the lowest."""

    name = "bars"
    family = "chart"
    problem_type = "regression"
    reward_kind = "stepped (MRA)"

    def scene(self, rng: np.random.Generator, level: int) -> BarsScene:
        """Draw values until two of them differ."""
        count, top = _BARS_LEVELS[level]
        colours = rng.permutation(list(COLOURS))[:count]
        while True:
            values = tuple(between(rng, 1, top) for _ in range(count))
            if len(set(values)) > 1:
                return BarsScene(tuple(str(colour) for colour in colours), values)

    def problem(self, scene: BarsScene) -> str:
        """Describe every bar, and ask for the difference."""
        described = ", ".join(
            f"{colour} {value}" for colour, value in zip(scene.colours, scene.values, strict=True)
        )
        return f"Bars: {described}. How much higher is the highest than the lowest?"

    def answer(self, scene: BarsScene) -> str:
        """Return the difference, which is above 0."""
        return str(max(scene.values) - min(scene.values))

    def worked(self, scene: BarsScene) -> str:
        """Find both bars before subtracting."""
        high, low = max(scene.values), min(scene.values)
        return f"highest {high}, lowest {low}: {high}-{low}={high - low}"


# Sorting: a sequence of letters in alphabetical order, scored by 1 − CER (heavy tail).

_LETTERS = "ABCDEFGHJKLMNPQRTUVWXYZ"

# Level -> number of letters.
_SORTING_LEVELS = {1: 7, 2: 10, 3: 13}


@dataclass(frozen=True)
class SortingScene:
    """The letters in the order in which they are given; one may occur more than once."""

    letters: str


class Sorting(Task[SortingScene]):
    """Sort 7 to 13 letters."""

    name = "sorting"
    family = "OCR"
    problem_type = "character OCR"
    reward_kind = "heavy tail (1 - CER)"

    def scene(self, rng: np.random.Generator, level: int) -> SortingScene:
        """Draw the letters."""
        return SortingScene("".join(pick(rng, _LETTERS) for _ in range(_SORTING_LEVELS[level])))

    def problem(self, scene: SortingScene) -> str:
        """Give the letters."""
        return f"Sort the letters: {scene.letters}"

    def answer(self, scene: SortingScene) -> str:
        """Return the letters in alphabetical order."""
        return "".join(sorted(scene.letters))

    def worked(self, scene: SortingScene) -> str:
        """Sort each half by itself first."""
        middle = len(scene.letters) // 2
        halves = scene.letters[:middle], scene.letters[middle:]
        return ",".join("".join(sorted(half)) for half in halves)


TEXT_TASKS: dict[str, Task[Any]] = {
    task.name: task for task in (Arithmetic(), Box(), Bars(), Sorting())
}
"""Name -> task of text."""
