"""Structure: whether an answer has the form that its problem type requires."""

from __future__ import annotations

from typing import Any

from .answers import as_numbers, read_object
from .boxes import BOX
from .ground_truth import truth_text
from .objects import all_read, find_objects, named_objects
from .points import read_prompts
from .spans import SPAN
from .video import as_frames, frame_name, named_frames

SHAPE_OF_TRACK = 0.5
"""Share of a track's structure for its form; the rest is for naming the right frames."""


def box_structure(answer: str, truth: Any) -> float:
    """Return 1 for an answer that is only boxes, in any notation of :func:`box_iou`, else 0.

    Examples
    --------
    >>> box_structure("[0,0,10,5]", ""), box_structure("about [0,0,10,5]", "")
    (1.0, 0.0)
    """
    return float(find_objects(answer, BOX).alone)


def span_structure(answer: str, truth: Any) -> float:
    """Return 1 for an answer that is only spans, in any notation of :func:`span_iou`, else 0.

    Examples
    --------
    >>> span_structure('{"time": [1, 2.5]}', ""), span_structure("[1]", "")
    (1.0, 0.0)
    """
    return float(find_objects(answer, SPAN).alone)


def track_structure(answer: str, truth: Any) -> float:
    """Return 0.5 for the form of a track, and 0.5 times the share of the truth's frames in it.

    Examples
    --------
    >>> truth = '{"boxes": {"1": [0, 0, 9, 9], "2": [1, 0, 9, 9]}}'
    >>> track_structure('{"boxes": {"2": [0, 0, 1, 1]}}', truth), track_structure("[]", truth)
    (0.75, 0.0)
    """
    boxes = named_frames(read_object(answer))
    if not boxes or any(as_numbers(edges, 4) is None for edges in boxes.values()):
        return 0.0
    frames = as_frames(named_frames(_object(truth))).keys()
    named = len(frames & {frame_name(name) for name in boxes})
    return SHAPE_OF_TRACK + (1 - SHAPE_OF_TRACK) * named / max(len(frames), 1)


def tube_structure(answer: str, truth: Any) -> float:
    """Return :func:`track_structure` for an answer with a span of time, else 0.

    Examples
    --------
    >>> truth = '{"time": [0, 2], "boxes": {"1": [0, 0, 9, 9]}}'
    >>> tube_structure(truth, truth), tube_structure('{"boxes": {"1": [0, 0, 9, 9]}}', truth)
    (1.0, 0.0)
    """
    if not all_read(named_objects(read_object(answer), SPAN)):
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
    given, target = read_prompts(read_object(answer)), read_prompts(_object(truth))
    right = all_read(given.boxes)
    if target.time is not None:
        right = right and given.time is not None
    for points, wanted in (
        (given.positive, target.positive),
        (given.negative, target.negative),
    ):
        right = right and points is not None and len(points) == len(wanted or [])
    return float(right)


def _object(truth: Any) -> dict[str, Any]:
    return read_object(truth_text(truth, "be a JSON object"))
