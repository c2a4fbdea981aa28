"""Arithmetic: the expressions of the maths task, written out; scored by exact match (binary)."""

from __future__ import annotations

import numpy as np

from g2rpo_trainer.tasks.base import Task
from g2rpo_trainer.tasks.maths import Maths, MathsScene

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
