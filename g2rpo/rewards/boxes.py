"""Boxes in images: intersection over union."""

from __future__ import annotations

import math
import re

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(r"\[" + ",".join([_NUMBER] * 4) + r"\]")


def box_iou(answer: str, truth: str) -> float:
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
    >>> box_iou("top left", "[0,0,10,10]")
    0.0
    """
    target = _parse(truth)
    if target is None:
        raise ValueError(f"truth is {truth!r}; it must contain a box [x1,y1,x2,y2] with an area")
    box = _parse(answer)
    if box is None:
        return 0.0
    width = min(box[2], target[2]) - max(box[0], target[0])
    height = min(box[3], target[3]) - max(box[1], target[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(box) + _area(target) - shared)


def _parse(text: str) -> tuple[float, ...] | None:
    match = _BOX.search(text)
    if match is None:
        return None
    box = tuple(float(edge) for edge in match.groups())
    has_area = box[0] < box[2] and box[1] < box[3] and math.isfinite(_area(box))
    return box if has_area else None


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
