"""The reward of a response: its components and their weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .boxes import box_iou
from .choice import choice_match
from .numbers import mean_relative_accuracy, number_match
from .response import parse_response
from .text import character_accuracy

ACCURACY_WEIGHT = 0.9
FORMAT_WEIGHT = 0.1

ACCURACY: dict[str, Callable[[str, str], float]] = {
    "spatial grounding": box_iou,
    "numerical": number_match,
    "maths": number_match,
    "multiple choice": choice_match,
    "regression": mean_relative_accuracy,
    "character OCR": character_accuracy,
}
"""Problem type -> function of (answer, truth) with values from 0 to 1."""


class Score(NamedTuple):
    """Reward components of one response, each from 0 to 1.

    Attributes
    ----------
    reward : float
        ``0.9 * accuracy + 0.1 * format``.
    accuracy : float
        By the record's problem type.
    format : float
        1 if the response is one thought and one answer, else 0.
    """

    reward: float
    accuracy: float
    format: float


def score(record: Mapping[str, Any], response: str) -> Score:
    """Score one response.

    Parameters
    ----------
    record : mapping
        With ``problem_type``, a key of :data:`ACCURACY`, and ``answer``.
    response : str
        Everything that the policy wrote.

    Returns
    -------
    Score
        The components and their sum.

    Raises
    ------
    ValueError
        If the problem type is unknown, or the record's answer does not fit it.

    Examples
    --------
    >>> score({"problem_type": "maths", "answer": "7"}, "<answer>7</answer>")
    Score(reward=0.9, accuracy=1.0, format=0.0)
    """
    problem_type = record["problem_type"]
    if problem_type not in ACCURACY:
        raise ValueError(f"problem_type is {problem_type!r}; it must be one of {sorted(ACCURACY)}")
    parsed = parse_response(response)
    accuracy = 0.0
    if parsed.answer is not None:
        accuracy = ACCURACY[problem_type](parsed.answer, record["answer"])
    form = float(parsed.well_formed)
    return Score(ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * form, accuracy, form)
