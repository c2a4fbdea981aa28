"""Numbers: exact to two decimals, and mean relative accuracy."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from .ground_truth import bad_truth, one_truth
from .quantity import Quantity, like, read_quantity

_THRESHOLDS = tuple(Fraction(step, 100) for step in range(50, 100, 5))
_MUST = "be a finite number"


def number_match(answer: str, truth: Any) -> float:
    r"""Return 1 if two numbers are equal to two decimals, else 0.

    Parameters
    ----------
    answer : str
        A text that is one number, alone or with a unit: ``-7``, ``1,234,567.5``, ``1.6e-19``,
        ``3/4``, ``2 1/2``, ``½``, ``√2``, ``50%``, ``\$18.90``, ``12 cm``, plain or in LaTeX.
    truth : str or number
        The right number, in the same forms.

    Returns
    -------
    float
        0 or 1; 0 if the answer is no number.

    Raises
    ------
    ValueError
        If ``truth`` is no number.

    Notes
    -----
    Commas separate thousands where all groups allow it (``1,234``, ``10,00,000``); another single
    comma is a decimal comma (``1,5``, ``0,125``); anything else (``3,5,7``) is no number. A truth
    other than 0 that rounds to 0.00 is compared to two significant digits. An unevaluated fraction
    or root with an integer value (``14/2``) is no number.

    Examples
    --------
    >>> number_match("82.0", "82"), number_match("eighty-two", "82"), number_match("1,5", "1.5")
    (1.0, 0.0, 1.0)
    """
    right, given = _truth(truth), _read(answer)
    places = 2
    if right.value and not round(right.value, places):
        exact = Decimal(right.value.numerator) / Decimal(right.value.denominator)
        places = 1 - exact.adjusted()
    values = like(given, right) if given else []
    return float(any(round(value, places) == round(right.value, places) for value in values))


def mean_relative_accuracy(answer: str, truth: Any) -> float:
    """Return the share of the thresholds .5, .55, …, .95 that a number's relative error passes.

    An answer passes threshold t if ``|answer - truth| / |truth| < 1 - t``, without rounding.

    Parameters
    ----------
    answer : str
        A text that is one number, as for :func:`number_match`.
    truth : str or number
        The right number. For 0 only 0 is right.

    Returns
    -------
    float
        A multiple of 0.1 from 0 to 1; 0 if the answer is no number.

    Raises
    ------
    ValueError
        If ``truth`` is no number.

    Examples
    --------
    >>> mean_relative_accuracy("10", "10"), mean_relative_accuracy("12", "10")
    (1.0, 0.6)
    """
    right, given = _truth(truth), _read(answer)
    values = like(given, right) if given else []
    return max((_share(value, right.value) for value in values), default=0.0)


def _share(value: Fraction, right: Fraction) -> float:
    if not right:
        return float(not value)
    error = abs(value - right) / abs(right)
    return sum(error < 1 - threshold for threshold in _THRESHOLDS) / len(_THRESHOLDS)


def _read(text: str) -> Quantity | None:
    number = read_quantity(text)
    return number if number and number.is_worked else None


def _truth(truth: Any) -> Quantity:
    number = _read(one_truth(truth, _MUST))
    if number is None:
        raise bad_truth(truth, _MUST)
    return number
