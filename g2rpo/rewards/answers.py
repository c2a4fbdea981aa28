"""Answers that are JSON objects: reading them without ever failing."""

from __future__ import annotations

import json
import math
from typing import Any

from .boxes import Box, as_box


def read_json(text: str) -> Any:
    """Return the value that a text is in JSON, or None for any other text.

    Examples
    --------
    >>> read_json('{"time": [1, 2]}'), read_json("[1, 2"), read_json("[" * 100_000)
    ({'time': [1, 2]}, None, None)
    """
    try:
        return json.loads(text)
    # No JSON, a number of thousands of digits, or brackets thousands deep.
    except (ValueError, RecursionError):
        return None


def read_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text is, or an empty one for any other text.

    Examples
    --------
    >>> read_object('{"time": 3}'), read_object("3")
    ({'time': 3}, {})
    """
    value = read_json(text)
    return value if isinstance(value, dict) else {}


def as_number(value: Any) -> float | None:
    """Return a finite JSON number as a float, or None.

    Examples
    --------
    >>> as_number(3), as_number("3"), as_number(True), as_number(float("nan")), as_number(10**400)
    (3.0, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_numbers(value: Any, count: int) -> list[float] | None:
    """Return a JSON list of ``count`` finite numbers as floats, or None.

    Examples
    --------
    >>> as_numbers([1, 2], 2), as_numbers([1, 2], 3), as_numbers([1, None], 2)
    ([1.0, 2.0], None, None)
    """
    if not isinstance(value, list) or len(value) != count:
        return None
    numbers = [number for item in value if (number := as_number(item)) is not None]
    return numbers if len(numbers) == count else None


def as_points(value: Any) -> list[list[float]] | None:
    """Return a JSON list of points ``[x, y]``, at least one, or None.

    Examples
    --------
    >>> as_points([[1, 2], [3, 4]]), as_points([[1, 2], [3]]), as_points([])
    ([[1.0, 2.0], [3.0, 4.0]], None, None)
    """
    if not isinstance(value, list):
        return None
    points = [point for item in value if (point := as_numbers(item, 2)) is not None]
    return points if points and len(points) == len(value) else None


def as_frames(value: Any) -> dict[float | str, Box]:
    """Return the boxes of a JSON object ``{frame: [x1, y1, x2, y2]}`` that have an area.

    The name of a frame that is a number counts as that number: ``"1"`` and ``"1.0"`` are one frame.

    Examples
    --------
    >>> as_frames({"1": [0, 0, 2, 2], "2.50": [0, 0, 1, 1], "3": "left"})
    {1.0: (0.0, 0.0, 2.0, 2.0), 2.5: (0.0, 0.0, 1.0, 1.0)}
    """
    if not isinstance(value, dict):
        return {}
    boxes = {frame_name(name): as_box(as_numbers(edges, 4)) for name, edges in value.items()}
    return {name: box for name, box in boxes.items() if box is not None}


def frame_name(name: str) -> float | str:
    """Return the name of a frame as the number that it is, or as it stands.

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
