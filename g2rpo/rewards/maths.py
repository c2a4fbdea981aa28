"""Maths: equality of an answer and the right one as numbers or expressions, in any notation."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any, NamedTuple

from .ground_truth import all_truths, bad_truth
from .libraries import MissingLibraryError, library
from .notation import DELIMITERS, Formula, to_latex
from .quantity import like, read_quantity, same_number
from .time_limit import OutOfTime, time_limit
from .unwrapping import unwrap

# A text without a digit or a LaTeX command is no number.
_WORDS = re.compile(r"[^\d\\]*")

_MUST = "be a number or an expression, plain or in LaTeX"
# A time of day, or a ratio of three and more numbers: compared as text.
_COLONS = re.compile(r"\d+(?::\d+){2,}|\d{1,2}:[0-5]\d(?:[ap]m)?")


def maths_match(answer: str, truth: Any, *, seconds: float = 5.0) -> float:
    r"""Return 1 if two expressions are equal as mathematics, else 0.

    Parameters
    ----------
    answer : str
        A number or an expression, plain or in LaTeX, with or without ``$…$`` and ``\boxed{…}``.
    truth : str, number or list
        The right one. A list is a collection of answers in any order: ``[2, 3]`` is ``2, 3``.
    seconds : float
        Time limit for parsing and comparing the answer; beyond it the answer is wrong. There is no
        limit outside of the main thread, on Windows and within a long call into C. In the processes
        of :class:`g2rpo.rewards.RewardPool` the pool's limit applies instead, without exceptions.

    Returns
    -------
    float
        0 or 1; 0 for an answer of more than 1,000 characters.

    Raises
    ------
    ValueError
        If ``truth`` is no expression.
    ImportError
        If Math-Verify is needed and not installed.

    Notes
    -----
    Integers are compared exactly, other numbers to six decimals or, below 1, to six digits, so that
    only 0 equals 0. Everything else is compared by Math-Verify. A comma separates thousands in
    ``1,234,567`` and ``10,00,000``, elsewhere the items of a list. If the truth is evaluated, an
    unevaluated answer is wrong: ``7+5`` for 12, which may repeat the question, and ``12+0x``; so is
    an equation that does not hold, ``13=12``. Other forms of a number, like ``14/2``, are right.

    Examples
    --------
    >>> maths_match(r"\frac{2}{4}", "0.5"), maths_match("(x+1)^2", "$x^2+2x+1$")
    (1.0, 1.0)
    >>> maths_match("x^2", "x^3"), maths_match("a half", "0.5"), maths_match("3, 2", [2, 3])
    (0.0, 0.0, 1.0)
    """
    text = maths_text(truth)
    right, given = read_quantity(text, algebra=True), read_quantity(answer, algebra=True)
    if right is not None and given is not None:
        return float(any(same_number(right.value, value) for value in like(given, right)))
    if _COLONS.fullmatch(_spelled(text)):
        return float(_spelled(answer) == _spelled(text))
    formula = to_latex(answer)
    if right is not None and (formula is None or _WORDS.fullmatch(formula.latex)):
        return 0.0
    expected = _expected(text)
    if formula is None or (formula.unit and expected.unit and formula.unit != expected.unit):
        return 0.0
    try:
        with time_limit(seconds):
            return float(_is_right(expected, formula))
    except OutOfTime:
        return 0.0


def maths_text(truth: Any) -> str:
    """Return the right answer as a text, a list of answers separated by commas.

    Examples
    --------
    >>> maths_text([2, "x"]), maths_text(7)
    ('2, x', '7')
    """
    must = f"{_MUST}, or a list of such"
    return ", ".join(all_truths(truth, must))


class _Expected(NamedTuple):
    expressions: tuple[Any, ...]
    unit: str


@lru_cache(maxsize=1024)
def _expected(text: str) -> _Expected:
    # Cached for the responses to one prompt. No time limit: a slow machine must not reject a truth.
    formula = to_latex(text)
    expressions = () if formula is None else tuple(_expressions(formula.latex))
    if formula is None or not expressions:
        raise bad_truth(text, _MUST)
    return _Expected(expressions, formula.unit)


def _expressions(latex: str) -> list[Any]:
    # Math-Verify returns unparsable parts as text: they are left out.
    if not latex:
        return []
    module = _math_verify()
    from .symbols import is_readable  # imports SymPy

    # Units are removed before. Only the LaTeX extraction: the others would take any number in the
    # text, such as the 10 of an unreadable power.
    normal = module.parser.NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
    )
    config = module.LatexExtractionConfig(normalization_config=normal)
    delimited = latex if any(mark in latex for mark in DELIMITERS) else f"${latex}$"
    parsed = module.parse(delimited, [config], parsing_timeout=None)
    return [item for item in parsed if not isinstance(item, str) and is_readable(item)]


def _is_right(expected: _Expected, formula: Formula) -> bool:
    from .symbols import is_same

    try:
        given = _expressions(formula.latex)
        return any(is_same(right, one) for right in expected.expressions for one in given)
    except MissingLibraryError:
        raise
    except Exception:  # SymPy raises errors of many types on some expressions
        return False


def _spelled(text: str) -> str:
    return re.sub(r"[\s.]+|\\[!,;: ]|^0+(?=\d)", "", unwrap(text)).lower()


def _math_verify() -> Any:
    module = library("math_verify", "comparing expressions")
    # Its warnings quote whole responses, and recommend a time limit that is set here.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return module
