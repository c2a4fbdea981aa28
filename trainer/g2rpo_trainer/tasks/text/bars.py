"""Bars: the spread of a described bar chart, scored by mean relative accuracy (stepped)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_trainer.tasks.base import Task, between
from g2rpo_trainer.tasks.canvas import COLOURS

# Level -> (number of bars, largest value).
_LEVELS = {1: (3, 12), 2: (4, 24), 3: (5, 48)}


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
        count, top = _LEVELS[level]
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
