"""Segmentation by a box and points: prompts for a model that turns them into a mask."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .answers import as_points, as_seconds, read_object
from .boxes import BOX
from .ground_truth import bad_truth, truth_text
from .libraries import library
from .objects import as_targets, match_objects, named_objects

SIGMA = 50.0
"""Distance, in the units of the points, at which their similarity is exp(−1/2)."""

TIME_SCALE = 2.0
"""Distance in seconds at which the similarity of two times is exp(−1)."""

# The similarity is 0 at this distance, and sums of such distances cannot overflow.
_FARTHEST = 1e6
_MUST = (
    'be {"boxes": [x1,y1,x2,y2], "positive_points": [[x,y], …], "negative_points": [[x,y], …]}, '
    'with "time": t in a video'
)

Points = list[list[float]]


class Prompts(NamedTuple):
    """Boxes, points inside and outside of the object, and a time; None for an unreadable one."""

    boxes: list[list[float] | None] | None
    positive: Points | None
    negative: Points | None
    time: float | None


def segmentation_match(answer: str, truth: Any) -> float:
    """Return the similarity of a box and points to the right ones.

    Image: ``.5 * IoU + .25 * positive + .25 * negative``. Video, where the truth has a time:
    ``.3 * IoU + .3 * exp(-|t - t'| / 2) + .2 * positive + .2 * negative``, in seconds.

    Parameters
    ----------
    answer : str
        ``{"boxes": [x1, y1, x2, y2], "positive_points": [[x, y], …], "negative_points": …}``, with
        ``"time": t`` in a video. Boxes as in :func:`box_iou`, also several.
    truth : str or dict
        The same.

    Returns
    -------
    float
        From 0 to 1. A missing or unreadable part scores 0.

    Raises
    ------
    ValueError
        If ``truth`` is no such object.

    See Also
    --------
    point_similarity : positive and negative points.

    Examples
    --------
    >>> truth = {"boxes": [0, 0, 9, 9], "positive_points": [[3, 4]], "negative_points": [[9, 0]]}
    >>> segmentation_match('{"boxes": [0, 0, 9, 9], "positive_points": [[3, 4]]}', truth)
    0.75
    """
    right = read_object(truth_text(truth, _MUST))
    boxes, positive, negative, time = read_prompts(right)
    targets = as_targets(boxes, BOX)
    if not (targets and positive and negative) or (time is None and right.get("time") is not None):
        raise bad_truth(truth, _MUST)
    given = read_prompts(read_object(answer))
    area = match_objects(given.boxes or [], targets, BOX)
    points = point_similarity(given.positive, positive), point_similarity(given.negative, negative)
    if time is None:
        return 0.5 * area + 0.25 * points[0] + 0.25 * points[1]
    moment = 0.0
    if given.time is not None:
        moment = math.exp(-abs(given.time - time) / TIME_SCALE)
    return 0.3 * area + 0.3 * moment + 0.2 * points[0] + 0.2 * points[1]


def point_similarity(points: Points | None, targets: Points) -> float:
    """Return ``exp(-d² / (2 · 50²))`` for the mean distance d under the best assignment.

    It is 0 for another number of points than of targets.

    Examples
    --------
    >>> point_similarity([[10, 0], [0, 0]], [[0, 0], [10, 0]]), point_similarity([[1, 1]], [])
    (1.0, 0.0)
    """
    if points is None or not targets or len(points) != len(targets):
        return 0.0
    assign = library("scipy.optimize", "the best assignment of points").linear_sum_assignment
    distances = [
        [min(math.hypot(x - right, y - below), _FARTHEST) for right, below in targets]
        for x, y in points
    ]
    mean = sum(distances[row][column] for row, column in zip(*assign(distances), strict=True))
    return math.exp(-((mean / len(targets)) ** 2) / (2 * SIGMA**2))


def read_prompts(given: dict[str, Any]) -> Prompts:
    """Return the prompts in an answer that is a JSON object.

    Examples
    --------
    >>> read_prompts({"bbox_2d": [0, 0, 9, 9], "time": "2.5"})
    Prompts(boxes=[[0.0, 0.0, 9.0, 9.0]], positive=None, negative=None, time=2.5)
    """
    return Prompts(
        boxes=named_objects(given, BOX),
        positive=as_points(given.get("positive_points")),
        negative=as_points(given.get("negative_points")),
        time=as_seconds(given.get("time")),
    )
