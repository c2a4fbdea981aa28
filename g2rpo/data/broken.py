"""The error of one record, before it is known whether it ends the run or is left out."""

from __future__ import annotations

from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class BrokenRecord(ValueError):
    """A record cannot be used; the text says what it is and what it must be, without its place."""


def shown(value: Any) -> str:
    """Return ``repr(value)``, shortened to what fits an error message."""
    return _SHORT.repr(value)
