"""Sorting: a sequence of letters in alphabetical order, scored by 1 − CER (heavy tail)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g2rpo_trainer.tasks.base import Task, pick

LETTERS = "ABCDEFGHJKLMNPQRTUVWXYZ"

# Level -> number of letters.
_LEVELS = {1: 7, 2: 10, 3: 13}


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
        return SortingScene("".join(pick(rng, LETTERS) for _ in range(_LEVELS[level])))

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
