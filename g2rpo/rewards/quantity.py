"""Text to an exact number, with its percent sign and unit."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

from .units import CURRENCIES, SYMBOLS, read_unit
from .unwrapping import LONGEST, unwrap


class Quantity(NamedTuple):
    """A number with its notation."""

    value: Fraction  # exact; a root to 50 digits; before the percent sign
    percent: bool = False
    unit: str = ""  # its symbol
    is_worked: bool = True  # not a fraction or root with an integer value, such as 14/2


_SAME = str.maketrans(
    {
        **dict.fromkeys("\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}－﹣", "-"),
        **dict.fromkeys("×·⋅∙✕", "*"),
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u202f\u2005\u2006", " "),
        **dict.fromkeys("\N{FRACTION SLASH}∕", "/"),
        **dict.fromkeys("，٬", ","),
        **dict.fromkeys("．٫", "."),
        **dict.fromkeys("％٪", "%"),
        **dict.fromkeys("\u200b\u2060\ufeff", ""),
        "’": "'",
        "＋": "+",
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RUN_OF_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\left(?![a-z])|\\right(?![a-z])|\\!|\\displaystyle", ""),
        (r"\{,\}", ","),
        (r"\\[,;: ]|~", " "),
        (r"\\([%$])", r"\1"),
        (r"\\times|\\cdot|\\ast", "*"),
        (r"\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2"),
        (r"\\[dtc]?frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2"),
        (r"\\sqrt\s*\{?(\d+)\}?|√\s*[({]?(\d+)[)}]?|\bsqrt\s*\((\d+)\)", r"√\1\2\3"),
        (r"\^\s*\{\s*([-+]?\d+)\s*\}", r"^\1"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree", "°"),
    )
)

# An integer without or with groups of digits: 1,234,567 and 10,00,000, 1 234 567, 1'234'567.
_INTEGER = (
    r"(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?: \d{3})+|(?:'\d{3})+)|[1-9]\d?(?:,\d{2})+,\d{3}|\d+)(?!\d)"
)
_DECIMAL = rf"(?:{_INTEGER}(?:\.(?!\d*\.\d)\d*)?|\.\d+)"
# A decimal comma, or points between groups: 1,5 and 1.234,5 and 1.234.567.
_COMMA = (
    r"(?:[1-9]\d{0,2}(?:\.\d{3}){2,}(?:,\d+)?|[1-9]\d{0,2}(?:[. ]\d{3})+,\d+"
    r"|(?![1-9]\d{0,2},\d{3}(?!\d))\d+,\d+)(?![\d.,])"
)
_HEAD = re.compile(
    r"10\^(?P<ten>[-+]?\d{1,4})(?!\d)"
    r"|(?:(?P<whole>\d+) +)?(?P<top>\d+) ?/ ?(?P<bottom>\d+)(?![\d.,/^*√])"
    rf"|(?P<factor>{_DECIMAL})? ?\*? ?√(?P<root>\d+)(?: ?/ ?(?P<under>\d+))?(?![\d.,/^*√])"
    rf"|(?:(?P<comma>{_COMMA})|(?P<decimal>{_DECIMAL}))(?![\d,/√])"
    r"(?:[eE](?P<e>[-+]?\d{1,4})(?!\d)| ?\* ?10\^(?P<power>[-+]?\d{1,4})(?!\d))?"
)
_TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox|rm|operatorname)\s*\{([^{}]*)\}(\^\d)?")
_PERCENT = re.compile(r"%|percent|per cent|pct\.?", re.IGNORECASE)
MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def read_quantity(text: str, *, algebra: bool = False) -> Quantity | None:
    r"""Return the number of a text, or None if the text is anything else.

    The text is digits with or without a sign, groups of thousands, decimals, an exponent
    (``1.6e-19``, ``1.6×10⁻¹⁹``), a fraction or a mixed number (``3/4``, ``2 1/2``, ``½``), a square
    root (``√2``), then a percent sign, a magnitude (``million``) or a unit, plain or in LaTeX. With
    `algebra`, ``1,5`` is a list, not a decimal comma, and letters directly after a number, as in
    ``5m`` and ``2mg``, are symbols unless they can only be a unit.

    Examples
    --------
    >>> read_quantity("1,250.5").value, read_quantity("1,5", algebra=True), read_quantity("3,5,7")
    (Fraction(2501, 2), None, None)
    >>> read_quantity("1,5").value, read_quantity("2½ cm")
    (Fraction(3, 2), Quantity(value=Fraction(5, 2), percent=False, unit='cm', is_worked=True))
    """
    if len(text) > LONGEST:
        return None
    text = _plain(text)
    text, before = _currency_before(text)
    sign = -1 if text.startswith("-") else 1
    text = text[text.startswith(("-", "+")) :].lstrip()
    if not before:
        text, before = _currency_before(text)
    match = _HEAD.match(text)
    if match is None or (algebra and "," in (match["comma"] or "")):
        return None
    try:
        value, is_worked = _value(match)
    except (ValueError, ZeroDivisionError):  # no mixed number, too many digits; over 0
        return None
    behind = text[match.end() :]
    if algebra and behind.strip() in SYMBOLS and not behind[0].isspace():
        return None
    rest = _rest(behind.strip())
    if rest is None or (before and rest.unit):
        return None
    return Quantity(sign * value * rest.value, rest.percent, rest.unit or before, is_worked)


def in_ascii(text: str, fraction: str, power: str) -> str:
    """Return a text with Unicode signs, fractions and superscripts in ASCII.

    `fraction` is a format of numerator and denominator, `power` one of an exponent.

    Examples
    --------
    >>> in_ascii("−2½·10⁻¹⁹", " %d/%d", "^{%s}")
    '-2 1/2*10^{-19}'
    """
    for character in set(text):
        if unicodedata.category(character) == "No" and "VULGAR" in unicodedata.name(character):
            part = Fraction(unicodedata.numeric(character)).limit_denominator(100)
            text = text.replace(character, fraction % (part.numerator, part.denominator))
    text = _RUN_OF_RAISED.sub(lambda run: power % run[0].translate(_RAISED), text)
    # Between two digits it is a range.
    text = re.sub("(?<!\\d)\N{EN DASH}|\N{EN DASH}(?!\\d)", "-", text)
    return text.translate(_SAME)


def _plain(text: str) -> str:
    text = unwrap(in_ascii(text, " %d/%d", "^%s"))
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = text.strip()
    while text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    return text


def _currency_before(text: str) -> tuple[str, str]:
    return (text[1:].lstrip(), text[0]) if text[:1] and text[0] in CURRENCIES else (text, "")


def _value(match: re.Match[str]) -> tuple[Fraction, bool]:
    if number := match["comma"] or match["decimal"]:
        exponent = int(match["e"] or match["power"] or 0)
        return _digits(number, bool(match["comma"])) * Fraction(10) ** exponent, True
    if match["ten"]:
        return Fraction(10) ** int(match["ten"]), True
    if match["top"]:
        part = Fraction(int(match["top"]), int(match["bottom"]))
        if match["whole"] and part >= 1:
            raise ValueError("not a mixed number")
        return int(match["whole"] or 0) + part, part.denominator > 1
    with localcontext(prec=50):
        root = Fraction(Decimal(int(match["root"])).sqrt())
    factor = _digits(match["factor"], False) if match["factor"] else Fraction(1)
    return factor * root / int(match["under"] or 1), root.denominator > 1


def _digits(number: str, comma: bool) -> Fraction:
    if comma:
        number = number.replace(".", "").replace(",", ".")
    return Fraction(re.sub(r"[, ']", "", number))


def _rest(text: str) -> Quantity | None:
    # The text after the digits, as a factor, a percent sign and a unit.
    if not text:
        return Quantity(Fraction(1))
    in_text = _TEXT.fullmatch(text)
    text = " ".join((in_text.expand(r"\1\2") if in_text else text).split())
    if _PERCENT.fullmatch(text):
        return Quantity(Fraction(1), percent=True)
    magnitude, _, unit = text.partition(" ")
    factor = Fraction(1)
    if magnitude.lower() in MAGNITUDES:
        factor, text = Fraction(10) ** MAGNITUDES[magnitude.lower()], unit
    if not text:
        return Quantity(factor)
    known = read_unit(text)
    if known is None and not in_text:
        return None
    return Quantity(factor, unit=known or "")


def like(given: Quantity, right: Quantity) -> list[Fraction]:
    """Return the possible values of a number in the unit of another.

    Two units must be equal; a unit of only one of them is ignored. A percent sign of only one of
    them may be the unit of the question (50% is 50) or a hundredth (50% is 0.5).

    Examples
    --------
    >>> like(read_quantity("50%"), read_quantity("0.5"))
    [Fraction(50, 1), Fraction(1, 2)]
    >>> like(read_quantity("5 m"), read_quantity("5 cm"))
    []
    """
    if given.unit and right.unit and given.unit != right.unit:
        return []
    if given.percent == right.percent:
        return [given.value]
    return [given.value, given.value / 100 if given.percent else given.value * 100]


def same_number(right: Fraction, given: Fraction) -> bool:
    """Return whether two numbers are equal: integers exactly, others to about six digits.

    The tolerance is 1e-6, below 1 relative to the larger number, and at least 1e-12 of it. So only
    0 equals 0.

    Examples
    --------
    >>> same_number(Fraction(10**20), Fraction(10**20 + 1))
    False
    >>> same_number(Fraction(1, 3), Fraction("0.333333"))
    True
    >>> same_number(Fraction(0), Fraction("1e-19"))
    False
    """
    if right.denominator == given.denominator == 1:
        return right == given
    return abs(right - given) <= tolerance(max(abs(right), abs(given)))


def tolerance(size: Fraction) -> Fraction:
    """Return the largest difference of equal numbers of a magnitude."""
    return max(min(size, Fraction(1)) / 10**6, size / 10**12)
