"""Numbers: exact to two decimals, and mean relative accuracy."""

from __future__ import annotations

import math
import re
from typing import Any

from .truth import bad_truth, truth_text

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))
_MUST = "be a finite number"


def number_match(answer: str, truth: Any) -> float:
    """Return 1 if two numbers are equal to two decimals, else 0.

    Parameters
    ----------
    answer : str
        A text that is one number; thousands separators and the minus sign of typesetters (−) are
        fine.
    truth : str or number
        The right number.

    Returns
    -------
    float
        0 or 1; 0 if the answer is not a finite number.

    Raises
    ------
    ValueError
        If ``truth`` is not a finite number.

    Examples
    --------
    >>> number_match("82.0", "82"), number_match("eighty-two", "82")
    (1.0, 0.0)
    """
    right, given = _truth(truth), parse_number(answer)
    return float(given is not None and round(given, 2) == round(right, 2))


def mean_relative_accuracy(answer: str, truth: Any) -> float:
    """Return the share of thresholds .5, .55, …, .95 that a number's relative error respects.

    An answer passes threshold t if ``|answer - truth| / |truth| < 1 - t``.

    Parameters
    ----------
    answer : str
        A text that is one number.
    truth : str or number
        The right number. For 0 only 0 is right.

    Returns
    -------
    float
        A multiple of 0.1 from 0 to 1; 0 if the answer is not a finite number.

    Raises
    ------
    ValueError
        If ``truth`` is not a finite number.

    Examples
    --------
    >>> mean_relative_accuracy("10", "10"), mean_relative_accuracy("12", "10")
    (1.0, 0.6)
    """
    right, given = _truth(truth), parse_number(answer)
    if given is None:
        return 0.0
    if right == 0:
        return float(given == 0)
    error = abs(given - right) / abs(right)
    # The small allowance keeps .2 of 1 on its own side of 1 − .8 in binary arithmetic.
    passed = sum(error < 1 - threshold - 1e-12 for threshold in _THRESHOLDS)
    return passed / len(_THRESHOLDS)


def parse_number(text: str) -> float | None:
    """Return the finite number that a text is, or None.

    Examples
    --------
    >>> parse_number(" 1,250.5 "), parse_number("about 3"), parse_number("1e999")
    (1250.5, None, None)
    >>> parse_number("\N{MINUS SIGN}5")
    -5.0
    """
    match = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-"))
    if match is None:
        return None
    number = float(match[0].replace(",", ""))
    return number if math.isfinite(number) else None


def _truth(truth: Any) -> float:
    number = parse_number(truth_text(truth, _MUST))
    if number is None:
        raise bad_truth(truth, _MUST)
    return number
