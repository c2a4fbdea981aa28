"""From a response's text to its score.

:func:`score` takes a record and a response apart into reward components: the accuracy, by the
record's ``problem_type``, and the format. Every function here is pure and returns a finite number
for any text; an answer that cannot be read scores 0.

Examples
--------
>>> from g2rpo.rewards import score
>>> record = {"problem_type": "spatial grounding", "answer": "[0,0,10,10]"}
>>> score(record, "<think>a corner</think><answer>[0,0,10,5]</answer>")
Score(reward=0.55, accuracy=0.5, format=1.0)
"""

from .boxes import box_iou
from .choice import choice_match
from .numbers import mean_relative_accuracy, number_match
from .response import Response, parse_response
from .score import ACCURACY, ACCURACY_WEIGHT, FORMAT_WEIGHT, Score, score
from .text import character_accuracy

__all__ = [
    "ACCURACY",
    "ACCURACY_WEIGHT",
    "FORMAT_WEIGHT",
    "Response",
    "Score",
    "box_iou",
    "character_accuracy",
    "choice_match",
    "mean_relative_accuracy",
    "number_match",
    "parse_response",
    "score",
]
