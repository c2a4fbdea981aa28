"""Reward functions by problem type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from g2rpo._suggest import did_you_mean

from .boxes import box_iou
from .choice import choice_match
from .maths import maths_match
from .numbers import mean_relative_accuracy, number_match
from .points import segmentation_match
from .rouge import rouge_mean
from .spans import span_iou
from .structure import (
    box_structure,
    segmentation_structure,
    span_structure,
    track_structure,
    tube_structure,
)
from .text import character_accuracy, word_accuracy
from .video import track_iou, tube_iou

RewardFunction = Callable[[str, Any], float]
"""Function of (the answer's text, the record's ``answer``)."""

ACCURACY: dict[str, RewardFunction] = {
    "multiple choice": choice_match,
    "numerical": number_match,
    "regression": mean_relative_accuracy,
    "maths": maths_match,
    "OCR": word_accuracy,
    "character OCR": character_accuracy,
    "open-ended": rouge_mean,
    "spatial grounding": box_iou,
    "temporal grounding": span_iou,
    "spatio-temporal grounding": tube_iou,
    "tracking": track_iou,
    "segmentation": segmentation_match,
}
"""Problem type -> function of (answer, truth) with values from 0 to 1."""

TEXTS = frozenset(
    {
        *("multiple choice", "numerical", "regression", "maths"),
        *("OCR", "character OCR", "open-ended"),
    }
)
"""Problem types whose answer is a text; a list is then a list of right answers."""

STRUCTURE: dict[str, RewardFunction] = {
    "spatial grounding": box_structure,
    "temporal grounding": span_structure,
    "spatio-temporal grounding": tube_structure,
    "tracking": track_structure,
    "segmentation": segmentation_structure,
}
"""Problem type -> function of (answer, truth) with values from 0 to 1; 1 for all other types."""

ALIASES = {
    "math": "maths",
    "spatial-temporal grounding": "spatio-temporal grounding",
}
"""Other names of problem types, as in the authors' data."""

_TUBE = '{"time": [1, 2], "boxes": {"1": [1, 2, 9, 8], "2": [2, 2, 9, 8]}}'
_PROMPTS = (
    '{"boxes": [10, 20, 90, 80], "positive_points": [[30, 40], [50, 50], [70, 60]], '
    '"negative_points": [[5, 5], [95, 20], [50, 95]]}'
)

EXAMPLES: dict[str, str] = {
    "multiple choice": "B",
    "numerical": "12.50",
    "regression": "17",
    "maths": r"\frac{1}{2}x^2",
    "OCR": "no parking here",
    "character OCR": "7A8",
    "open-ended": "A dog sleeps on the porch.",
    "spatial grounding": '{"boxes": [10, 20, 90, 80]}',
    "temporal grounding": '{"time": [4.5, 9.0]}',
    "spatio-temporal grounding": _TUBE,
    "tracking": '{"boxes": {"1": [10, 20, 90, 80], "2": [12, 20, 92, 80]}}',
    "segmentation": _PROMPTS,
}
"""Problem type -> an example of a well-formed answer, which is right if it is the truth too."""


def find_type(name: object, known: Mapping[str, Any]) -> str:
    """Return the key of ``known`` for a record's problem type.

    Parameters
    ----------
    name : str
        Letter case and the number of spaces are ignored; :data:`ALIASES` are accepted.
    known : mapping
        Its keys are problem types.

    Returns
    -------
    str
        A key of ``known``.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> find_type("Spatial-Temporal Grounding", ACCURACY), find_type("ocr", ACCURACY)
    ('spatio-temporal grounding', 'OCR')
    """
    if isinstance(name, str):
        if name in known:
            return name
        plain = plain_name(name)
        by_plain = {plain_name(key): key for key in known}
        for candidate in (plain, ALIASES.get(plain, plain)):
            if candidate in by_plain:
                return by_plain[candidate]
    hint = did_you_mean(str(name), known)
    raise ValueError(f"problem_type is {name!r}; it must be one of {sorted(known)}{hint}")


def takes_texts(problem_type: str) -> bool:
    """Return whether a list is a list of answers of a problem type, and not one answer.

    Examples
    --------
    >>> takes_texts("ocr"), takes_texts("Math"), takes_texts("tracking"), takes_texts("my own")
    (True, True, False, False)
    """
    plain = plain_name(problem_type)
    return ALIASES.get(plain, plain) in map(plain_name, TEXTS)


def plain_name(name: str) -> str:
    """Return a problem type in lower case with single spaces.

    Examples
    --------
    >>> plain_name(" Multiple  Choice")
    'multiple choice'
    """
    return " ".join(name.lower().split())
