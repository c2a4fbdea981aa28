"""Units of measure and currencies after or before a number: compared, never converted."""

from __future__ import annotations

import re

_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gramme",
    "kg": "kilogram kilo kilogramme",
    "lb": "pound lbs",
    "oz": "ounce",
    "ml": "milliliter millilitre mL",
    "l": "liter litre L",
    "ms": "millisecond",
    "s": "sec second",
    "min": "minute mins",
    "h": "hr hrs hour",
    "days": "day",
    "weeks": "week",
    "months": "month",
    "years": "year yr yrs",
    "mph": "",
    "rad": "radian",
    "°": "degree deg",
    "°C": "℃ celsius",
    "°F": "℉ fahrenheit",
    "N": "newton",
    "J": "joule",
    "W": "watt",
    "V": "volt",
    "Hz": "hertz",
    "Pa": "pascal",
    "$": "USD dollar bucks",
    "¢": "cent",
    "€": "EUR euro",
    "£": "GBP",
    "¥": "JPY yen CNY yuan",
    "₹": "INR rupee",
}
_BY_NAME = {
    spelled: symbol
    for symbol, names in _NAMES.items()
    for name in (symbol, *names.split())
    for spelled in (name, *([f"{name}s", name.capitalize()] if len(name) > 2 else []))
}
CURRENCIES = "$€£¥₹"

SYMBOLS = frozenset({"m", "g", "s", "l", "L", "h", "N", "J", "W", "V", "mm", "mg", "ml", "mL"}) | {
    *("ms", "mi", "in", "Pa", "Hz")
}
"""Units that may also be symbols or products of symbols."""

_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_WORD = r"[A-Za-z°℃℉$€£¥₹¢]+"
_UNIT = re.compile(
    rf"(?:(?P<power>square|sq|cubic|cu)\.?\s+)?(?P<name>{_WORD})\.?(?:\^?\{{?(?P<raised>[23])\}}?)?"
    rf"(?:\s*(?:/|\bper\b)\s*(?P<per>{_WORD})(?:\^?\{{?(?P<lowered>[23])\}}?)?)?"
)


def read_unit(text: str) -> str | None:
    """Return the symbol of a unit, or None for an unknown one.

    Examples
    --------
    >>> read_unit("square metres"), read_unit("km per hour"), read_unit("apples")
    ('m^2', 'km/h', None)
    """
    match = _UNIT.fullmatch(text.strip().replace("²", "^2").replace("³", "^3"))
    if match is None or match["name"] not in _BY_NAME:
        return None
    unit = _BY_NAME[match["name"]]
    raised = match["raised"] or _POWERS.get(match["power"] or "")
    unit += f"^{raised}" if raised else ""
    if match["per"] is None:
        return unit
    if match["per"] not in _BY_NAME:
        return None
    lowered = f"^{match['lowered']}" if match["lowered"] else ""
    return f"{unit}/{_BY_NAME[match['per']]}{lowered}"
