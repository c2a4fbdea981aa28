"""Readers of answers in JSON; none of them raises."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
COORDINATE = rf"\s*({_NUMBER.pattern})\s*"
"""Pattern of one number in a list, with the white space around it."""

_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")


def unfenced(text: str) -> str:
    """Return a text without the code fence around it, stripped.

    Examples
    --------
    >>> unfenced("```json [1, 2]```"), unfenced("[1, 2] ")
    ('[1, 2]', '[1, 2]')
    """
    text = text.strip()
    if len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].lstrip(string.ascii_letters).strip()
    return text


def read_json(text: str) -> Any:
    """Return the value of a JSON text, or None for any other text.

    A code fence around the value, and single quotes in place of double ones, are accepted.

    Examples
    --------
    >>> read_json('{"time": [1, 2]}'), read_json("```json {'time': 3}```")
    ({'time': [1, 2]}, {'time': 3})
    >>> read_json("[1, 2"), read_json("[" * 100_000)
    (None, None)
    """
    text = unfenced(text)
    for candidate in (text, text.replace("'", '"')):
        try:
            return json.loads(candidate)
        # Not JSON, a number of thousands of digits, or brackets nested thousands deep.
        except (ValueError, RecursionError):
            continue
    return None


def read_object(text: str) -> dict[str, Any]:
    """Return the JSON object of a text, alone or in a list of one; else an empty dictionary.

    Examples
    --------
    >>> read_object('{"time": 3}'), read_object('[{"time": 3}]'), read_object("3")
    ({'time': 3}, {'time': 3}, {})
    """
    value = read_json(text)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else {}


def first_key(value: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return the first of the names whose value in an object is not null.

    Examples
    --------
    >>> first_key({"bbox": [1, 2], "boxes": None}, ["boxes", "bbox"]), first_key({}, ["boxes"])
    ('bbox', None)
    """
    return next((name for name in names if value.get(name) is not None), None)


def as_number(value: Any) -> float | None:
    """Return a finite number, or the text of one, as a float; else None.

    Examples
    --------
    >>> as_number(3), as_number(" 3.5 "), as_number("3 cm"), as_number(True), as_number(10**400)
    (3.0, 3.5, None, None, None)
    """
    if isinstance(value, str):
        value = value.strip()
        if _NUMBER.fullmatch(value) is None:
            return None
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_seconds(value: Any) -> float | None:
    """Return a finite number, or a clock time ``mm:ss`` or ``hh:mm:ss`` in seconds; else None.

    Examples
    --------
    >>> as_seconds(3), as_seconds("01:02.50"), as_seconds("1:00:00"), as_seconds("noon")
    (3.0, 62.5, 3600.0, None)
    """
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        return as_number(value)
    hours, minutes, seconds = (float(part or 0) for part in clock.groups())
    total = 3600 * hours + 60 * minutes + seconds
    return total if math.isfinite(total) else None


def as_numbers(
    value: Any, count: int, read: Callable[[Any], float | None] = as_number
) -> list[float] | None:
    """Return a JSON list of ``count`` finite numbers as floats, or None.

    Examples
    --------
    >>> as_numbers([1, "2"], 2), as_numbers([1, 2], 3), as_numbers([1, None], 2)
    ([1.0, 2.0], None, None)
    """
    if not isinstance(value, list) or len(value) != count:
        return None
    numbers = [number for item in value if (number := read(item)) is not None]
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
