"""The right answer of a record: how it is read, and what is said when it cannot be."""

from __future__ import annotations

import json
from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class TruthError(ValueError):
    """A record's answer does not fit its problem type."""


def shown(value: object) -> str:
    """Return ``repr(value)``, shortened to what fits an error message."""
    return _SHORT.repr(value)


def bad_truth(truth: object, must: str) -> TruthError:
    """Return the error for a right answer that is not what it must be."""
    return TruthError(f"truth is {shown(truth)}; it must {must}")


def truth_text(truth: Any, must: str) -> str:
    """Return the right answer as the text that an answer would be.

    Parameters
    ----------
    truth : str, number, list, array or dict
        A column of a table may hold the answer as a value in place of a text, and a text may still
        stand between its answer tags.
    must : str
        What the answer must be, for the error: "be a finite number".

    Returns
    -------
    str
        Stripped, not empty.

    Raises
    ------
    TruthError
        If there is nothing to read.

    Examples
    --------
    >>> truth_text(" <answer>7</answer> ", "be a number"), truth_text([1, 2.5], "be a list")
    ('7', '[1, 2.5]')
    """
    if hasattr(truth, "tolist"):
        truth = truth.tolist()  # what NumPy makes of a column
    if isinstance(truth, list | dict):
        try:
            return json.dumps(truth)
        except (TypeError, ValueError, RecursionError):
            raise bad_truth(truth, must) from None
    if isinstance(truth, bool) or not isinstance(truth, str | int | float):
        raise bad_truth(truth, must)
    text = str(truth).strip()
    if text.startswith("<answer>") and text.endswith("</answer>"):
        text = text[len("<answer>") : -len("</answer>")].strip()
    if not text:
        raise bad_truth(truth, must)
    return text
