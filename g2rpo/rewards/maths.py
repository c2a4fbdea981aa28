"""Maths: an answer that is worth the same as the right one, however it is written."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from .clock import OutOfTime, time_limit
from .libraries import library
from .numbers import parse_number
from .truth import bad_truth, truth_text

LONGEST = 1000
"""Characters of the longest answer that is read; a longer one is no result but a text."""

# What is no number can be told without a library: text without a digit or a command, and sums,
# differences and products of numbers that are still to be worked out.
_WORDS = re.compile(r"[^\d\\]*")
_OPERATOR = r"(?:[-+*×·]|\\times|\\cdot)"
_EXERCISE = re.compile(rf"[\s$(]*[-+]?[\d.,]+[\s$()]*(?:{_OPERATOR}[\s(]*[-+]?[\d.,]+[\s$)]*)+")
_DELIMITERS = ("$", r"\(", r"\[", r"\boxed")
_MUST = "be a number or an expression, plain or in LaTeX"


def maths_match(answer: str, truth: Any, *, seconds: float = 5.0) -> float:
    r"""Return 1 if two expressions are equal as mathematics, else 0.

    Parameters
    ----------
    answer : str
        A number or an expression, plain or in LaTeX, with or without ``$…$`` and ``\boxed{…}``.
    truth : str or number
        The right one.
    seconds : float
        Most time that reading and comparing the answer may take; then it counts as wrong. Kept in
        the main thread and not on Windows, and not within one long call into C. In the processes of
        :class:`g2rpo.rewards.RewardPool` the pool's own limit holds, always.

    Returns
    -------
    float
        0 or 1; 0 for an answer of more than :data:`LONGEST` characters.

    Raises
    ------
    ValueError
        If ``truth`` is no expression.
    ImportError
        If Math-Verify is needed and not installed.

    Notes
    -----
    Two plain numbers are compared to six decimals, everything else by Math-Verify. Where the truth
    is a number, a sum, difference or product of numbers is wrong: ``7+5`` is not yet 12, and would
    let an answer repeat the question. Other forms of a number, like ``14/2``, are right.

    Examples
    --------
    >>> maths_match(r"\frac{2}{4}", "0.5"), maths_match("(x+1)^2", "$x^2+2x+1$")
    (1.0, 1.0)
    >>> maths_match("x^2", "x^3"), maths_match("a half", "0.5")
    (0.0, 0.0)
    """
    text = truth_text(truth, _MUST)
    right, given = parse_number(text), parse_number(answer)
    if right is not None and given is not None:
        return float(round(given, 6) == round(right, 6))
    if right is not None and (_WORDS.fullmatch(answer) or _EXERCISE.fullmatch(answer)):
        return 0.0
    expected = _expected(text)
    if not answer.strip() or len(answer) > LONGEST:
        return 0.0
    try:
        with time_limit(seconds):
            return float(_equal(expected, _expressions(answer)))
    except OutOfTime:
        return 0.0


@lru_cache(maxsize=1024)
def _expected(text: str) -> tuple[Any, ...]:
    # The responses to one prompt share it. No time limit: a slow machine makes no answer unusable.
    expressions = tuple(_expressions(text))
    if not expressions:
        raise bad_truth(text, _MUST)
    return expressions


def _expressions(text: str) -> list[Any]:
    # Without delimiters Math-Verify looks for single numbers only. What it could not parse it
    # returns as text, which is left out.
    delimited = any(mark in text for mark in _DELIMITERS)
    parsed = _math_verify().parse(text if delimited else f"${text}$", parsing_timeout=None)
    return [expression for expression in parsed if not isinstance(expression, str)]


def _equal(expected: tuple[Any, ...], given: list[Any]) -> bool:
    try:
        return bool(_math_verify().verify(list(expected), given, timeout_seconds=None))
    except Exception:  # SymPy fails on some expressions in ways of its own
        return False


def _math_verify() -> Any:
    module = library("math_verify", "comparing expressions")
    # Its warnings quote whole responses, or speak of a time limit that is set here.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return module
