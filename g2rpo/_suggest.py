"""Error texts for unknown names, with the known ones and the nearest of them."""

from collections.abc import Iterable
from difflib import get_close_matches

from ._shown import listed, shown

__all__ = ["did_you_mean", "unknown_name"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the name in `known` nearest to `name`, or nothing.

    Examples
    --------
    >>> did_you_mean("numercial", ["numerical", "maths"]), did_you_mean("poetry", ["maths"])
    ("; did you mean 'numerical'?", '')
    """
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {shown(close[0])}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the text for an unknown `name` of some `kind`, which lists all that are `known`."""
    names = list(known)
    return f"unknown {kind} {shown(name)}{did_you_mean(name, names)} (there are: {listed(names)})"
