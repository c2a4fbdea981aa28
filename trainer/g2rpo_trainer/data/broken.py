"""The error of one record, before it is known whether it ends the run or is left out."""

from __future__ import annotations

from g2rpo._shown import clipped


class BrokenRecord(ValueError):
    """A record cannot be used; the text says what it is and what it must be, without its place."""

    def __init__(self, text: str) -> None:
        super().__init__(clipped(text, 500))
