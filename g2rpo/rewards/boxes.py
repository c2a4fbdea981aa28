"""Boxes in images: intersection over union."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from .truth import bad_truth, truth_text

COORDINATE = r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*"
"""Pattern of one number in a list, with the white space around it."""

_BOX = re.compile(r"\[" + ",".join([COORDINATE] * 4) + r"\]")
_MUST = "contain a box [x1,y1,x2,y2] with an area"

Box = tuple[float, float, float, float]


def box_iou(answer: str, truth: Any) -> float:
    """Return the intersection over union of two boxes.

    Parameters
    ----------
    answer, truth : str
        Texts that contain ``[x1,y1,x2,y2]`` in any one unit; the first box found counts.

    Returns
    -------
    float
        From 0 to 1; 0 if the answer has no box or a box without area.

    Raises
    ------
    ValueError
        If ``truth`` has no box with an area.

    Examples
    --------
    >>> box_iou("[0,0,10,5]", "[0,0,10,10]")
    0.5
    >>> box_iou('{"boxes": [0, 0, 10, 5]}', '{"boxes": [0, 0, 10, 10]}')
    0.5
    >>> box_iou("top left", "[0,0,10,10]")
    0.0
    """
    target = _find(truth_text(truth, _MUST))
    if target is None:
        raise bad_truth(truth, _MUST)
    return overlap(_find(answer), target)


def overlap(box: Box | None, target: Box) -> float:
    """Return the intersection over union of two boxes with an area; 0 for no box.

    Examples
    --------
    >>> overlap((0.0, 0.0, 4.0, 4.0), (2.0, 0.0, 6.0, 4.0)) == 8 / 24
    True
    """
    if box is None:
        return 0.0
    width = min(box[2], target[2]) - max(box[0], target[0])
    height = min(box[3], target[3]) - max(box[1], target[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(box) + _area(target) - shared)


def as_box(edges: Sequence[float] | None) -> Box | None:
    """Return four numbers as a box, or None if they are none or enclose no finite area above 0.

    Examples
    --------
    >>> as_box([0, 0, 2, 1]), as_box([2, 0, 0, 1]), as_box(None)
    ((0.0, 0.0, 2.0, 1.0), None, None)
    """
    if edges is None:
        return None
    x1, y1, x2, y2 = map(float, edges)
    has_area = x1 < x2 and y1 < y2 and 0 < _area((x1, y1, x2, y2)) < math.inf
    return (x1, y1, x2, y2) if has_area else None


def _find(text: str) -> Box | None:
    match = _BOX.search(text)
    return None if match is None else as_box([float(edge) for edge in match.groups()])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
