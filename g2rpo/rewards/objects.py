"""Boxes or spans of time in an answer: parsing, and matching with those of the truth.

Boxes and spans are lists of numbers, in JSON under a known key, as a list alone, or anywhere in a
text. Parsing takes linear time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from .answers import as_numbers, first_key, read_json, unfenced
from .ground_truth import bad_truth, truth_text
from .libraries import library

MOST = 256
"""Largest number of objects in a truth or an answer; an answer with more scores 0."""

Shape = TypeVar("Shape", bound=tuple[float, ...])

# Qwen-VL and InternVL put their boxes between these.
_TOKENS = re.compile(r"<\|box_(?:start|end)\|>|</?box>")


class Kind(NamedTuple, Generic[Shape]):
    """Notation and comparison of boxes or of spans."""

    names: tuple[str, ...]  # keys of objects, in order of preference
    fields: tuple[tuple[str, ...], ...]  # sets of keys of single numbers
    number: Callable[[Any], float | None]  # item of a JSON list -> number, or None
    pattern: re.Pattern[str]  # one object in a text; its groups are the numbers
    shape: Callable[[Sequence[float] | None], Shape | None]  # None if empty
    overlap: Callable[[Shape | None, Shape], float]  # intersection over union
    must: str  # required form of a truth, for the error


class Found(NamedTuple):
    """Objects of an answer, at most :data:`MOST` + 1; None is one that cannot be read."""

    objects: list[list[float] | None]
    alone: bool  # the answer is 1 to MOST readable objects and nothing else


def find_objects(text: str, kind: Kind[Any]) -> Found:
    """Return the boxes or spans of an answer.

    They are the JSON values under a key of the kind, else the entries of a JSON list, else all
    objects anywhere in the text.
    """
    text = _TOKENS.sub("", unfenced(text)).strip()
    value = read_json(text)
    whole = value is not None
    named = named_objects(value if whole else _embedded(text), kind)
    if named is not None:
        return Found(named, whole and all_read(named))
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        listed = _collect(value, kind, named=True) or []
        return Found(listed, all_read(listed))
    written = [
        as_numbers([number for number in match.groups() if number is not None], len(kind.fields[0]))
        for match in islice(kind.pattern.finditer(text), MOST + 1)
    ]
    alone = all_read(written) and not kind.pattern.sub("", text).strip(" \t\r\n,;")
    return Found(written, alone)


def named_objects(value: Any, kind: Kind[Any]) -> list[list[float] | None] | None:
    """Return the objects under the outermost keys of a kind in a JSON value; None without a key.

    A value may be the numbers of one object, or several objects in a list or by name. An unreadable
    value counts as one object, None.
    """
    return _collect(value, kind, named=False)


def all_read(objects: Sequence[list[float] | None] | None) -> bool:
    """Return whether there are 1 to :data:`MOST` objects, and all can be read."""
    return objects is not None and 0 < len(objects) <= MOST and None not in objects


def match_objects(
    objects: Sequence[list[float] | None], targets: Sequence[Shape], kind: Kind[Shape]
) -> float:
    """Return the sum of IoU under the best one-to-one assignment, over the larger number.

    Missing and surplus objects both reduce the value; the order does not matter. An unreadable or
    empty object has no overlap, but counts as an object of the answer.
    """
    # Loaded as soon as the truth needs it, so that a missing library is reported before sampling.
    assign = None
    if len(targets) > 1:
        purpose = "the best assignment of several objects"
        assign = library("scipy.optimize", purpose).linear_sum_assignment
    if len(objects) > MOST:
        return 0.0
    # Sorted, so that the sum has the same last bit for every order of the answer.
    targets = sorted(targets)
    shapes = sorted(shape for item in objects if (shape := kind.shape(item)) is not None)
    overlaps = [[kind.overlap(shape, target) for target in targets] for shape in shapes]
    if not shapes:
        best = 0.0
    elif assign is None:
        best = max(row[0] for row in overlaps)
    else:
        pairs = zip(*assign(overlaps, maximize=True), strict=True)
        best = math.fsum(overlaps[row][column] for row, column in pairs)
    return best / max(len(objects), len(targets))


def truth_objects(truth: Any, kind: Kind[Shape]) -> list[Shape]:
    """Return the objects of a truth.

    Raises TruthError if one of them is empty, there is none, more than :data:`MOST`, or more than
    one inside of other text.
    """
    found = find_objects(truth_text(truth, kind.must), kind)
    shapes = as_targets(found.objects, kind)
    if shapes is None or not (found.alone or len(shapes) == 1):
        raise bad_truth(truth, kind.must)
    return shapes


def as_targets(
    objects: Sequence[list[float] | None] | None, kind: Kind[Shape]
) -> list[Shape] | None:
    """Return objects as the shapes of a truth, or None unless all of them are valid."""
    if not objects or not all_read(objects):
        return None
    shapes = [shape for item in objects if (shape := kind.shape(item)) is not None]
    return shapes if len(shapes) == len(objects) else None


def _collect(value: Any, kind: Kind[Any], *, named: bool) -> list[list[float] | None] | None:
    # A stack, not recursion: an answer may be nested deeply.
    objects: list[list[float] | None] = []
    any_named, count = named, len(kind.fields[0])
    stack = [(value, named)]
    while stack and len(objects) <= MOST:
        item, named = stack.pop()
        if named and isinstance(item, str):
            item = read_json(item)
        if isinstance(item, dict):
            name = first_key(item, kind.names)
            fields = next((keys for keys in kind.fields if all(key in item for key in keys)), None)
            any_named = any_named or name is not None or fields is not None
            if name is not None:
                stack.append((item[name], True))
            elif fields is not None:
                objects.append(as_numbers([item[key] for key in fields], count, kind.number))
            else:
                stack.extend((child, named) for child in item.values())
        elif isinstance(item, list) and all(kind.number(child) is None for child in item):
            stack.extend((child, named) for child in item)
        elif named:
            objects.append(as_numbers(item, count, kind.number))
    return objects if any_named else None


def _embedded(text: str) -> Any:
    # A JSON value inside of other text: from the first bracket to the last.
    starts = [place for bracket in "[{" if (place := text.find(bracket)) >= 0]
    end = max(text.rfind("]"), text.rfind("}"))
    return read_json(text[min(starts) : end + 1]) if starts else None
