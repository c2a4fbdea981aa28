"""Boxes over the frames of a video: tracking and spatio-temporal grounding."""

from __future__ import annotations

from typing import Any

from .answers import as_frames, as_numbers, read_object
from .boxes import Box, overlap
from .times import as_span, span_overlap
from .truth import bad_truth, truth_text

_TRACK_MUST = 'be {"boxes": {frame: [x1,y1,x2,y2], …}}, every box with an area'
_TUBE_MUST = 'be {"time": [start,end], "boxes": {frame: [x1,y1,x2,y2], …}}, every box with an area'


def track_iou(answer: str, truth: Any) -> float:
    """Return the mean intersection over union over the frames of a track.

    Parameters
    ----------
    answer : str
        ``{"boxes": {"1": [x1, y1, x2, y2], "2": …}}``, frame by frame.
    truth : str or dict
        The same, with at least one frame.

    Returns
    -------
    float
        From 0 to 1. A frame that the answer leaves out, or gives a box without area, counts 0;
        frames that the truth does not have do not count.

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
    return _mean_overlap(as_frames(read_object(answer).get("boxes")), frames)


def tube_iou(answer: str, truth: Any) -> float:
    """Return half the overlap in time and half the mean overlap in space.

    Parameters
    ----------
    answer : str
        ``{"time": [start, end], "boxes": {"1": [x1, y1, x2, y2], …}}``.
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
    Space is the mean over all frames of the truth. The authors' code averages over those that the
    answer has too, so that one good frame is enough for full marks.

    Examples
    --------
    >>> truth = '{"time": [0, 4], "boxes": {"1": [0, 0, 10, 10], "2": [0, 0, 10, 10]}}'
    >>> tube_iou('{"time": [0, 2], "boxes": {"1": [0, 0, 10, 10]}}', truth)
    0.5
    """
    text = truth_text(truth, _TUBE_MUST)
    frames = _frames_of(text, truth, _TUBE_MUST)
    target = as_span(as_numbers(read_object(text).get("time"), 2))
    if target is None:
        raise bad_truth(truth, _TUBE_MUST)
    given = read_object(answer)
    in_time = span_overlap(as_span(as_numbers(given.get("time"), 2)), target)
    return 0.5 * in_time + 0.5 * _mean_overlap(as_frames(given.get("boxes")), frames)


def _frames_of(text: str, truth: Any, must: str) -> dict[float | str, Box]:
    boxes = read_object(text).get("boxes", {})
    frames = as_frames(boxes)
    if not frames or len(frames) != len(boxes):
        raise bad_truth(truth, must)
    return frames


def _mean_overlap(given: dict[float | str, Box], frames: dict[float | str, Box]) -> float:
    overlaps = [overlap(given.get(name), box) for name, box in frames.items()]
    return sum(overlaps) / len(overlaps)
