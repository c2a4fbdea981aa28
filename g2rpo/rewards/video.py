"""Boxes over the frames of a video: tracking and spatio-temporal grounding."""

from __future__ import annotations

import math
from typing import Any

from .answers import as_numbers, first_key, read_object
from .boxes import BOX, Box, as_box, overlap
from .ground_truth import bad_truth, truth_text
from .objects import as_targets, match_objects, named_objects
from .spans import SPAN

_TRACK_MUST = 'be {"boxes": {frame: [x1,y1,x2,y2], …}}, every box with an area'
_TUBE_MUST = 'be {"time": [start,end], "boxes": {frame: [x1,y1,x2,y2], …}}, every box with an area'


def track_iou(answer: str, truth: Any) -> float:
    """Return the mean intersection over union over the frames of a track.

    Parameters
    ----------
    answer : str
        ``{"boxes": {"1": [x1, y1, x2, y2], "2": …}}``, frame by frame; or another key of
        :func:`box_iou`.
    truth : str or dict
        The same, with at least one frame.

    Returns
    -------
    float
        From 0 to 1. A frame without a box of positive area in the answer counts 0; additional
        frames are ignored.

    Raises
    ------
    ValueError
        If ``truth`` is no such object, has no frame, or a box without area.

    Examples
    --------
    >>> truth = '{"boxes": {"1": [0, 0, 10, 10], "2": [5, 0, 15, 10]}}'
    >>> track_iou(truth, truth), track_iou('{"boxes": {"2": [5, 0, 15, 5]}}', truth)
    (1.0, 0.25)
    """
    frames = _frames_of(truth_text(truth, _TRACK_MUST), truth, _TRACK_MUST)
    return _mean_overlap(as_frames(named_frames(read_object(answer))), frames)


def tube_iou(answer: str, truth: Any) -> float:
    """Return half the overlap in time and half the mean overlap in space.

    Parameters
    ----------
    answer : str
        ``{"time": [start, end], "boxes": {"1": [x1, y1, x2, y2], …}}``; the time as in
        :func:`span_iou`, also several spans.
    truth : str or dict
        The same, with at least one frame.

    Returns
    -------
    float
        ``.5 * span_iou + .5 * track_iou``, from 0 to 1.

    Raises
    ------
    ValueError
        If ``truth`` is no such object, has no frame, or a span or a box that is empty.

    Notes
    -----
    The spatial part is the mean over all frames of the truth. The authors' code averages over the
    frames that the answer contains, so that one frame is enough for a full score.

    Examples
    --------
    >>> truth = '{"time": [0, 4], "boxes": {"1": [0, 0, 10, 10], "2": [0, 0, 10, 10]}}'
    >>> tube_iou('{"time": [0, 2], "boxes": {"1": [0, 0, 10, 10]}}', truth)
    0.5
    """
    text = truth_text(truth, _TUBE_MUST)
    frames = _frames_of(text, truth, _TUBE_MUST)
    spans = as_targets(named_objects(read_object(text), SPAN), SPAN)
    if spans is None:
        raise bad_truth(truth, _TUBE_MUST)
    given = read_object(answer)
    in_time = match_objects(named_objects(given, SPAN) or [], spans, SPAN)
    return 0.5 * in_time + 0.5 * _mean_overlap(as_frames(named_frames(given)), frames)


def named_frames(value: dict[str, Any]) -> dict[str, Any]:
    """Return the frames of an answer: the object under a key of boxes, else an empty one.

    Examples
    --------
    >>> named_frames({"bbox_2d": {"1": [0, 0, 2, 2]}}), named_frames({"boxes": [0, 0, 2, 2]})
    ({'1': [0, 0, 2, 2]}, {})
    """
    name = first_key(value, BOX.names)
    frames = None if name is None else value[name]
    return frames if isinstance(frames, dict) else {}


def as_frames(value: dict[str, Any]) -> dict[float | str, Box]:
    """Return the boxes of a JSON object ``{frame: [x1, y1, x2, y2]}`` that have an area.

    Names of frames are compared as numbers where they are: ``"1"`` and ``"1.0"`` are one frame.

    Examples
    --------
    >>> as_frames({"1": [0, 0, 2, 2], "2.50": [0, 0, 1, 1], "3": "left"})
    {1.0: (0.0, 0.0, 2.0, 2.0), 2.5: (0.0, 0.0, 1.0, 1.0)}
    """
    boxes = {frame_name(name): as_box(as_numbers(edges, 4)) for name, edges in value.items()}
    return {name: box for name, box in boxes.items() if box is not None}


def frame_name(name: str) -> float | str:
    """Return the name of a frame as a number, or without surrounding spaces if it is none.

    Examples
    --------
    >>> frame_name("01"), frame_name(" last ")
    (1.0, 'last')
    """
    try:
        number = float(name)
    except ValueError:
        return name.strip()
    return number if math.isfinite(number) else name.strip()


def _frames_of(text: str, truth: Any, must: str) -> dict[float | str, Box]:
    boxes = named_frames(read_object(text))
    frames = as_frames(boxes)
    if not frames or len(frames) != len(boxes):
        raise bad_truth(truth, must)
    return frames


def _mean_overlap(given: dict[float | str, Box], frames: dict[float | str, Box]) -> float:
    overlaps = [overlap(given.get(name), box) for name, box in frames.items()]
    return sum(overlaps) / len(overlaps)
