"""Layout of tables: no borders, and folded rather than cut, so that 60 columns hold them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.table import Table

from g2rpo._shown import visible

__all__ = ["PlainTable"]

_NARROW = 72  # columns of a terminal


class PlainTable:
    """Table of texts and numbers.

    Parameters
    ----------
    *texts : str
        Headings of columns of texts, which come first.
    numbers : iterable of str
        Headings of columns of numbers.
    more : iterable of str
        Headings of columns of texts that come last.
    optional : str
        Heading of a column that a narrow terminal leaves out.
    title : str, optional
        Line above the table.

    Examples
    --------
    >>> table = PlainTable("task", "kind", numbers=["reward"], optional="kind")
    >>> table.add_row("ocr", "dense", "0.5")
    >>> Console(width=80).print(table)
     task  kind   reward
     ───────────────────
     ocr   dense     0.5
    >>> Console(width=60).print(table)
     task  reward
     ────────────
     ocr      0.5
    """

    box = box.SIMPLE_HEAD

    def __init__(
        self,
        *texts: str,
        numbers: Iterable[str] = (),
        more: Iterable[str] = (),
        optional: str = "",
        title: str | None = None,
    ) -> None:
        numbers = list(numbers)
        self._headings = [*texts, *numbers, *more]
        self._sides: list[JustifyMethod] = ["left"] * len(self._headings)
        self._sides[len(texts) : len(texts) + len(numbers)] = ["right"] * len(numbers)
        self._optional, self._title = optional, title
        self._rows: list[tuple[tuple[RenderableType, ...], str] | None] = []

    def add_row(self, *cells: RenderableType, style: str = "") -> None:
        """Add a row of as many cells as there are headings; control characters become symbols."""
        shown = tuple(visible(cell) if isinstance(cell, str) else cell for cell in cells)
        self._rows.append((shown, style))

    def add_section(self) -> None:
        """Set the rows that follow apart from those before."""
        self._rows.append(None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_narrow = options.max_width < _NARROW
        kept = [not is_narrow or heading != self._optional for heading in self._headings]
        table = Table(
            title=self._title, title_justify="left", box=self.box, padding=(0, 1, 0, 0),
            pad_edge=False,
        )  # fmt: skip
        # The widest column folds first, which is seldom one of numbers.
        for heading, side in compress(zip(self._headings, self._sides, strict=True), kept):
            style = "dim" if heading == self._optional else ""
            table.add_column(heading, overflow="fold", style=style, justify=side)
        for row in self._rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*compress(row[0], kept), style=row[1])
        yield table
