"""The right answer of a record, the *truth*: conversion to text, and its errors."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any

from g2rpo._shown import shown

# More combining marks than any script puts on a letter. Python normalises the marks of a letter in
# quadratic time.
_MARKS = 30


class TruthError(ValueError):
    """A record's answer does not fit its problem type."""


def bad_truth(truth: object, must: str) -> TruthError:
    """Return the error for an invalid truth, with the text "it must …"."""
    return TruthError(f"truth is {shown(truth)}; it must {must}")


def truth_text(truth: Any, must: str) -> str:
    """Return a truth as text in the form of an answer: stripped, not empty, no answer tags.

    `must` is the required form, for the error: "be a finite number". Raises TruthError if the text
    is empty, a number is not finite, or the value has another type.

    Examples
    --------
    >>> truth_text(" <answer>7</answer> ", "be a number"), truth_text([1, 2.5], "be a list")
    ('7', '[1, 2.5]')
    """
    truth = _as_value(truth)
    if isinstance(truth, list | dict):
        try:
            return json.dumps(truth, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise bad_truth(truth, must) from None
    if isinstance(truth, bool) or not isinstance(truth, str | int | float):
        raise bad_truth(truth, must)
    if isinstance(truth, float) and not math.isfinite(truth):
        raise bad_truth(truth, must)
    text = str(truth).strip()
    if text.startswith("<answer>") and text.endswith("</answer>"):
        text = text[len("<answer>") : -len("</answer>")].strip()
    if not text:
        raise bad_truth(truth, must)
    return text


def all_truths(truth: Any, must: str) -> list[str]:
    """Return all right answers of a record that may have several: of a text or a list of texts.

    Examples
    --------
    >>> all_truths("colour", "be a text"), all_truths(["colour", "color"], "be a text")
    (['colour'], ['colour', 'color'])
    >>> all_truths([["colour"], "color"], "be a text")
    Traceback (most recent call last):
        ...
    g2rpo.rewards.ground_truth.TruthError: truth is [['colour'], 'color']; it must be a text,
    or be a list of such answers
    """
    truth = _as_value(truth)
    several = isinstance(truth, list)
    must = f"{must}, or be a list of such answers"
    items = truth if several else [truth]
    if not items or any(isinstance(item, list | tuple | dict) for item in items):
        raise bad_truth(truth, must)
    return [truth_text(item, must) for item in items]


def one_truth(truth: Any, must: str) -> str:
    """Return the right answer of a record that has one: of a text or a list of one.

    Examples
    --------
    >>> one_truth(["7"], "be a number")
    '7'
    >>> one_truth([7, 8], "be a number")
    Traceback (most recent call last):
        ...
    g2rpo.rewards.ground_truth.TruthError: truth is [7, 8]; it must be a number
    """
    truth = _as_value(truth)
    if isinstance(truth, dict) or (isinstance(truth, list) and len(truth) != 1):
        raise bad_truth(truth, must)
    return all_truths(truth, must)[0] if isinstance(truth, list) else truth_text(truth, must)


def comparable(text: str) -> str:
    r"""Return a text in Unicode's composed form (NFC), for comparison.

    Examples
    --------
    >>> comparable("e\u0301") == "\u00e9"
    True
    """
    marks = "".join(
        character
        for character in set(text)
        if unicodedata.combining(unicodedata.normalize("NFD", character)[0])
    )
    if marks:
        text = re.sub(f"([{re.escape(marks)}]{{{_MARKS}}})[{re.escape(marks)}]+", r"\1", text)
    return unicodedata.normalize("NFC", text)


def _as_value(truth: Any) -> Any:
    if hasattr(truth, "tolist"):
        truth = truth.tolist()  # a value of NumPy
    return list(truth) if isinstance(truth, tuple) else truth
