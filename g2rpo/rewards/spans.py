"""Spans of time in videos: intersection over union in one dimension."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from .answers import COORDINATE, as_seconds
from .objects import MOST, Kind, find_objects, match_objects, truth_objects

Span = tuple[float, float]


def span_iou(answer: str, truth: Any) -> float:
    """Return the intersection over union of spans of time under the best one-to-one assignment.

    ``sum(IoU of the pairs) / max(spans of the answer, spans of the truth)``: with one span each,
    the intersection over union of the two.

    Parameters
    ----------
    answer : str
        Spans ``[start, end]`` in any one unit. Those in JSON under ``time`` or ``times``, or as
        ``{"start": …, "end": …}``, count; without such a key, all spans in the text. A clock time
        ``"mm:ss"`` in JSON is converted to seconds.
    truth : str or list or dict
        The same, from 1 to 256 spans; several of them without other text.

    Returns
    -------
    float
        From 0 to 1. An empty span has no overlap, but counts as a span of the answer; 0 for an
        answer without a span or with more than 256.

    Raises
    ------
    ValueError
        If ``truth`` has no span, or an empty one.
    MissingLibraryError
        If ``truth`` has several spans and SciPy is not installed.

    Examples
    --------
    >>> span_iou('{"time": [2, 6]}', '{"time": [4, 8]}') == 2 / 6
    True
    >>> span_iou("[0, 4]", "[4, 8]"), span_iou("at the end", "[4, 8]")
    (0.0, 0.0)
    >>> span_iou('[{"start": "00:04", "end": "00:08.0"}]', "[4, 8]")
    1.0
    >>> span_iou("[4, 8] and [0, 2]", "[4, 8]")
    0.5
    """
    return match_objects(find_objects(answer, SPAN).objects, truth_objects(truth, SPAN), SPAN)


def span_overlap(span: Span | None, target: Span) -> float:
    """Return the intersection over union of two spans with a length; 0 for no span.

    Examples
    --------
    >>> span_overlap((0.0, 3.0), (0.0, 4.0))
    0.75
    """
    if span is None:
        return 0.0
    shared = max(min(span[1], target[1]) - max(span[0], target[0]), 0.0)
    return shared / ((span[1] - span[0]) + (target[1] - target[0]) - shared)


def as_span(ends: Sequence[float] | None) -> Span | None:
    """Return two numbers as a span; None for None, or unless the length is positive and finite.

    Examples
    --------
    >>> as_span([1, 3]), as_span([3, 1])
    ((1.0, 3.0), None)
    """
    if ends is None:
        return None
    start, end = map(float, ends)
    return (start, end) if start < end and math.isfinite(end - start) else None


SPAN: Kind[Span] = Kind(
    names=("time", "times"),
    fields=(("start", "end"), ("start_time", "end_time")),
    number=as_seconds,
    pattern=re.compile(rf"\[{COORDINATE},{COORDINATE}\]"),
    shape=as_span,
    overlap=span_overlap,
    must=f"contain one span of time [start,end], start < end, or be a list of 1 to {MOST} of them",
)
"""Notation and comparison of spans of time."""
