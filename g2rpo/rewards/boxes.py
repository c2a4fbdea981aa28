"""Boxes in images: intersection over union."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from .answers import COORDINATE, as_number
from .objects import MOST, Kind, find_objects, match_objects, truth_objects

Box = tuple[float, float, float, float]


def box_iou(answer: str, truth: Any) -> float:
    """Return the intersection over union of boxes under the best one-to-one assignment.

    ``sum(IoU of the pairs) / max(boxes of the answer, boxes of the truth)``: with one box each, the
    intersection over union of the two.

    Parameters
    ----------
    answer : str
        Boxes ``[x1, y1, x2, y2]`` or ``(x1, y1), (x2, y2)`` in any one unit. Those in JSON under
        ``boxes``, ``bboxes``, ``bbox_2d``, ``bbox`` or ``box`` count; without such a key, all boxes
        in the text.
    truth : str or list or dict
        The same, from 1 to 256 boxes; several of them without other text.

    Returns
    -------
    float
        From 0 to 1. A box without area has no overlap, but counts as a box of the answer; 0 for an
        answer without a box or with more than 256.

    Raises
    ------
    ValueError
        If ``truth`` has no box, or one without area.
    MissingLibraryError
        If ``truth`` has several boxes and SciPy is not installed.

    Examples
    --------
    >>> box_iou("[0,0,10,5]", "[0,0,10,10]"), box_iou("top left", "[0,0,10,10]")
    (0.5, 0.0)
    >>> box_iou('{"size": [1, 1, 5, 5], "boxes": [0, 0, 10, 5]}', '{"boxes": [0, 0, 10, 10]}')
    0.5
    >>> box_iou("[[20,0,30,10], [0,0,10,10]]", "[[0,0,10,10], [20,0,30,10], [50,0,60,10]]") == 2 / 3
    True
    """
    return match_objects(find_objects(answer, BOX).objects, truth_objects(truth, BOX), BOX)


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
    """Return four numbers as a box; None for None, or unless the area is positive and finite.

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


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


_CORNER = rf"\({COORDINATE},{COORDINATE}\)"
BOX: Kind[Box] = Kind(
    names=("boxes", "bboxes", "bbox_2d", "bbox", "box"),
    fields=(("x1", "y1", "x2", "y2"),),
    number=as_number,
    pattern=re.compile(
        rf"\[{COORDINATE},{COORDINATE},{COORDINATE},{COORDINATE}\]|{_CORNER}\s*(?:,\s*)?{_CORNER}"
    ),
    shape=as_box,
    overlap=overlap,
    must=f"contain one box [x1,y1,x2,y2] with an area, or be a list of 1 to {MOST} of them",
)
"""Notation and comparison of boxes."""
