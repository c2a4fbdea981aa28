"""From a response's text to its score.

:func:`components` returns the reward components of a response: the accuracy, by the record's
``problem_type``, the format and the structure; :func:`score` leaves the structure out. Every
function here is pure and returns a finite number for any text; an answer that cannot be read scores
0. :class:`RewardPool` scores batches in worker processes, with a time limit for each response.

Examples
--------
>>> from g2rpo.rewards import score
>>> record = {"problem_type": "spatial grounding", "answer": "[0,0,10,10]"}
>>> score(record, "<think>a corner</think><answer>[0,0,10,5]</answer>")
Score(reward=0.55, accuracy=0.5, format=1.0)
"""

from .boxes import box_iou
from .choice import choice_match
from .custom import load_function, with_own
from .ground_truth import TruthError
from .libraries import MissingLibraryError
from .maths import maths_match
from .numbers import mean_relative_accuracy, number_match
from .points import segmentation_match
from .pool import Failure, RewardError, RewardPool, Scored, score_all
from .registry import ACCURACY, ALIASES, EXAMPLES, STRUCTURE, RewardFunction, find_type
from .response import Response, parse_response
from .rouge import rouge_mean
from .score import (
    ACCURACY_WEIGHT,
    FORMAT_WEIGHT,
    STRUCTURE_WEIGHT,
    BadRewardError,
    Components,
    Score,
    Weights,
    check_record,
    components,
    may_take_long,
    score,
)
from .spans import span_iou
from .text import character_accuracy, word_accuracy
from .video import track_iou, tube_iou
from .workers import WorkerStartError

__all__ = [
    "ACCURACY",
    "ACCURACY_WEIGHT",
    "ALIASES",
    "EXAMPLES",
    "FORMAT_WEIGHT",
    "STRUCTURE",
    "STRUCTURE_WEIGHT",
    "BadRewardError",
    "Components",
    "Failure",
    "MissingLibraryError",
    "Response",
    "RewardError",
    "RewardFunction",
    "RewardPool",
    "Score",
    "Scored",
    "TruthError",
    "Weights",
    "WorkerStartError",
    "box_iou",
    "character_accuracy",
    "check_record",
    "choice_match",
    "components",
    "find_type",
    "load_function",
    "maths_match",
    "may_take_long",
    "mean_relative_accuracy",
    "number_match",
    "parse_response",
    "rouge_mean",
    "score",
    "score_all",
    "segmentation_match",
    "span_iou",
    "track_iou",
    "tube_iou",
    "with_own",
    "word_accuracy",
]
