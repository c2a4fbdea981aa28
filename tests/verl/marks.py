"""A language of eight marks for tests: its tokens, responses at random, and their reward."""

from __future__ import annotations

import random
from typing import Any

MARKS = "abcdefgh"
END = "<end>"
TOKENS = ("<pad>", END, "system", "user", "assistant", *MARKS)


def random_response(seed: str) -> list[int]:
    """Return the tokens of 1 to 5 marks and the end."""
    draw = random.Random(seed)
    marks = draw.choices(range(TOKENS.index(MARKS[0]), len(TOKENS)), k=draw.randint(1, 5))
    return [*marks, TOKENS.index(END)]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None
) -> dict[str, float]:
    """Return the share of marks that are the right one, and whether they are few."""
    marks = [mark for mark in solution_str.split() if mark in MARKS]
    accuracy = marks.count(ground_truth) / len(marks) if marks else 0.0
    few = 1.0 if len(marks) <= 3 else 0.0
    return {"score": 0.9 * accuracy + 0.1 * few, "accuracy": accuracy, "few": few}
