"""Spans of time in videos: intersection over union in one dimension."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from .boxes import COORDINATE
from .truth import bad_truth, truth_text

_SPAN = re.compile(r"\[" + COORDINATE + "," + COORDINATE + r"\]")
_MUST = "contain a span of time [start,end] that ends after it starts"

Span = tuple[float, float]


def span_iou(answer: str, truth: Any) -> float:
    """Return the intersection over union of two spans of time.

    Parameters
    ----------
    answer, truth : str
        Texts that contain ``[start,end]`` in any one unit, alone or as ``{"time": [start, end]}``;
        the first span found counts.

    Returns
    -------
    float
        From 0 to 1; 0 if the answer has no span or an empty one.

    Raises
    ------
    ValueError
        If ``truth`` has no span of some length.

    Examples
    --------
    >>> span_iou('{"time": [2, 6]}', '{"time": [4, 8]}') == 2 / 6
    True
    >>> span_iou("[0, 4]", "[4, 8]"), span_iou("at the end", "[4, 8]")
    (0.0, 0.0)
    """
    target = _find(truth_text(truth, _MUST))
    if target is None:
        raise bad_truth(truth, _MUST)
    return span_overlap(_find(answer), target)


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
    """Return two numbers as a span, or None if they are none or leave no finite length above 0.

    Examples
    --------
    >>> as_span([1, 3]), as_span([3, 1])
    ((1.0, 3.0), None)
    """
    if ends is None:
        return None
    start, end = map(float, ends)
    return (start, end) if start < end and math.isfinite(end - start) else None


def _find(text: str) -> Span | None:
    match = _SPAN.search(text)
    return None if match is None else as_span([float(end) for end in match.groups()])
