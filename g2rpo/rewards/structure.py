"""Structure: whether an answer has the shape that its problem type asks for."""

from __future__ import annotations

from typing import Any

from .answers import (
    as_frames,
    as_number,
    as_numbers,
    as_points,
    frame_name,
    read_json,
    read_object,
)
from .truth import truth_text

SHAPE_OF_TRACK = 0.5
"""Part of the structure of a track that its shape is worth; naming the right frames is the rest."""


def box_structure(answer: str, truth: Any) -> float:
    """Return 1 for ``{"boxes": [x1, y1, x2, y2]}`` or the list alone, else 0.

    Examples
    --------
    >>> box_structure("[0,0,10,5]", ""), box_structure("about [0,0,10,5]", "")
    (1.0, 0.0)
    """
    return _holds_numbers(answer, "boxes", 4)


def span_structure(answer: str, truth: Any) -> float:
    """Return 1 for ``{"time": [start, end]}`` or the list alone, else 0.

    Examples
    --------
    >>> span_structure('{"time": [1, 2.5]}', ""), span_structure("[1]", "")
    (1.0, 0.0)
    """
    return _holds_numbers(answer, "time", 2)


def track_structure(answer: str, truth: Any) -> float:
    """Return half for the shape of a track, and half for the share of the truth's frames it names.

    Parameters
    ----------
    answer : str
        ``{"boxes": {frame: [x1, y1, x2, y2], …}}``.
    truth : str or dict
        The same.

    Returns
    -------
    float
        0 if the shape is wrong, else from 0.5 to 1.

    Examples
    --------
    >>> truth = '{"boxes": {"1": [0, 0, 9, 9], "2": [1, 0, 9, 9]}}'
    >>> track_structure('{"boxes": {"2": [0, 0, 1, 1]}}', truth), track_structure("[]", truth)
    (0.75, 0.0)
    """
    boxes = read_object(answer).get("boxes")
    if not isinstance(boxes, dict) or not boxes:
        return 0.0
    if any(as_numbers(edges, 4) is None for edges in boxes.values()):
        return 0.0
    frames = as_frames(_object(truth).get("boxes")).keys()
    named = len(frames & {frame_name(name) for name in boxes})
    return SHAPE_OF_TRACK + (1 - SHAPE_OF_TRACK) * named / max(len(frames), 1)


def tube_structure(answer: str, truth: Any) -> float:
    """Return what :func:`track_structure` does for an answer with a span of time, else 0.

    Examples
    --------
    >>> truth = '{"time": [0, 2], "boxes": {"1": [0, 0, 9, 9]}}'
    >>> tube_structure(truth, truth), tube_structure('{"boxes": {"1": [0, 0, 9, 9]}}', truth)
    (1.0, 0.0)
    """
    if as_numbers(read_object(answer).get("time"), 2) is None:
        return 0.0
    return track_structure(answer, truth)


def segmentation_structure(answer: str, truth: Any) -> float:
    """Return 1 for a box and as many points as the truth has, with a time if it has one, else 0.

    Examples
    --------
    >>> truth = '{"boxes": [0,0,9,9], "positive_points": [[3,4]], "negative_points": [[9,0]]}'
    >>> segmentation_structure(truth, truth), segmentation_structure("[0,0,9,9]", truth)
    (1.0, 0.0)
    """
    given, target = read_object(answer), _object(truth)
    right = as_numbers(given.get("boxes"), 4) is not None
    if "time" in target:
        right = right and as_number(given.get("time")) is not None
    for name in ("positive_points", "negative_points"):
        points = as_points(given.get(name))
        wanted = as_points(target.get(name)) or []
        right = right and points is not None and len(points) == len(wanted)
    return float(right)


def _holds_numbers(answer: str, name: str, count: int) -> float:
    value = read_json(answer)
    if isinstance(value, dict):
        value = value.get(name)
    return float(as_numbers(value, count) is not None)


def _object(truth: Any) -> dict[str, Any]:
    return read_object(truth_text(truth, "be a JSON object"))
