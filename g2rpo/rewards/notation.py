"""Plain-text, Unicode and loose LaTeX mathematics to LaTeX that Math-Verify parses correctly."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from .ground_truth import comparable
from .quantity import MAGNITUDES, in_ascii
from .units import read_unit
from .unwrapping import LONGEST, unwrap


class Formula(NamedTuple):
    """LaTeX without its unit, and the known unit, or the base of a number."""

    latex: str
    unit: str = ""


DELIMITERS = ("$", r"\(", r"\[", r"\boxed", r"\fbox")
_SYMBOLS = str.maketrans(
    {
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "±": r"\pm ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "°": r"^\circ ",
        "÷": "/",
        "≈": "=",
        "√": r"\sqrt",
        "∛": r"\sqrt[3]",
    }
)
_SPACE = r"(?:\\[,;: ]|~|\{,\}|\s)"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits|!)(?![A-Za-z])", ""),
        (r"(?:\\?[$€£¥₹])\s*(?=-?[\d.]+\s*$)", ""),
        # Thousands separated by spaces, then the Indian grouping of lakhs and crores.
        (
            rf"(?<![\d.,\\\w])[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+(?![\d/])",
            lambda match: re.sub(_SPACE, "", match[0]),
        ),
        (
            r"(?<![\d.,(\[{])[1-9]\d?(?:,\d{2})+,\d{3}(?![\d,)\]}])",
            lambda match: match[0].replace(",", ""),
        ),
        (r"\\[,;:]|\\ |~|\\q?quad(?![A-Za-z])", " "),
        (r"\\sqrt(\[3\])?\s*\(([^()]*)\)", r"\\sqrt\1{\2}"),
        (r"\\sqrt(\[3\])?\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt\1{\2}"),
        (r"\*\*", "^"),
        (r"\^\s*([-+]?\d+)", r"^{\1}"),
        (r"(?<![\w.\\])(\d+\.?\d*|\.\d+)[eE]([-+]?\d{1,4})(?![\w.])", r"\1\\times 10^{\2}"),
        (r"(?<![\w./])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/.])", r"\1\\frac{\2}{\3}"),
        # The digits that recur: 0.1\overline{6}, 0.1(6).
        (
            r"(?<![\d.])(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{(\d+)\}|\((\d+)\))",
            lambda match: _recurring(match[1], match[2], match[3] or match[4]),
        ),
    )
)
_BASE = re.compile(r"(\d+)_\{?(\d+)\}?")
_MIXED = re.compile(r"\d\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+\s*|[_^]\s*")
_SIDE_BY_SIDE = re.compile(r"(?<![@\w.])\d[\d.]*\s+[\d.]")
_TEXT_UNIT = re.compile(
    r"(?P<value>.*(?:\d|\\(?:pi|sqrt|frac)).*?)\s*"
    r"\\(?:text|mathrm|textrm|mbox|rm|operatorname)\s*\{\s*(?P<unit>[^{}]*?)\s*\}"
    r"(?P<power>\^\{?[23]\}?)?",
    re.DOTALL,
)
_PLAIN_UNIT = re.compile(
    r"(?P<value>.*[\d})])\s+(?P<unit>(?:square |cubic |sq\.? )?[A-Za-z]{2,})"
    r"(?P<power>\^\{?[23]\}?)?",
    re.DOTALL,
)


def to_latex(text: str) -> Formula | None:
    r"""Return a text as LaTeX, or None where Math-Verify would misread it.

    Unicode characters for powers, roots, fractions and signs become commands; ``1e-7`` becomes a
    power of ten, and the unit is split off. Two numbers side by side, which Math-Verify adds, are
    no expression.

    Examples
    --------
    >>> to_latex("2√3 cm"), to_latex("1.6e-19").latex, to_latex("x²+½").latex
    (Formula(latex='2\\sqrt{3}', unit='cm'), '1.6\\times 10^{-19}', 'x^{2}+\\frac{1}{2}')
    >>> to_latex("7 5"), to_latex("0.1\\overline{6}").latex
    (None, '\\frac{1}{6}')
    """
    if len(text) > LONGEST:
        return None
    latex = in_ascii(comparable(text), r"\frac{%d}{%d}", "^{%s}")
    latex = unwrap(latex.translate(_SYMBOLS))
    for pattern, replacement in _REWRITES:
        latex = pattern.sub(replacement, latex)
    formula = _without_unit(latex.strip())
    is_improper = any(int(m[1]) >= int(m[2]) for m in _MIXED.finditer(formula.latex))
    if is_improper or _SIDE_BY_SIDE.search(_COMMAND.sub("@", formula.latex)):
        return None
    return formula


def _without_unit(latex: str) -> Formula:
    if match := _BASE.fullmatch(latex):
        return Formula(match[1], f"base {match[2]}")
    match = _TEXT_UNIT.fullmatch(latex) or _PLAIN_UNIT.fullmatch(latex)
    if match is None or any(mark in latex for mark in DELIMITERS):
        return Formula(latex)
    name = match["unit"]
    if name.lower() in MAGNITUDES:
        return Formula(rf"{match['value']}\times 10^{{{MAGNITUDES[name.lower()]}}}")
    if name.lower() in ("percent", "percentage", "pct"):
        return Formula(rf"{match['value']}\%")
    unit = read_unit(name + (match["power"] or ""))
    # Text after a number is a unit, known or not; other letters are symbols.
    return Formula(match["value"], unit or "") if unit or match.re is _TEXT_UNIT else Formula(latex)


def _recurring(whole: str, fixed: str, repeated: str) -> str:
    digits = int(f"{whole}{fixed}{repeated}") - int(f"0{whole}{fixed}")
    value = Fraction(digits, 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
