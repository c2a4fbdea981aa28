"""How often a promise was tried and broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.table import Table


@dataclass
class Count:
    """Tries of one promise, and a line on each that broke it."""

    promise: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, what: object = "") -> Iterator[None]:
        """Count a try; any exception inside breaks the promise, and is noted with ``what``."""
        self.tried += 1
        try:
            yield
        except Exception as error:
            self.broken.append(f"{what}: {type(error).__name__}: {error}"[:500])

    def expect(self, holds: bool, what: object) -> None:
        """Count a try that breaks the promise unless it holds."""
        with self.trying(what):
            assert holds


def as_table(counts: Sequence[Count]) -> Table:
    """Return a table that fits a terminal."""
    table = Table("promise", "tried", "broken")
    for column in table.columns[1:]:
        column.justify = "right"
    for count in counts:
        table.add_row(count.promise, f"{count.tried:,}", f"{len(count.broken):,}")
    return table


def as_markdown(counts: Sequence[Count], machine: str) -> str:
    """Return the same as a page."""
    rows = [f"| {each.promise} | {each.tried:,} | {len(each.broken):,} |" for each in counts]
    head = ["# Faults and bad input", "", f"`python -m tests.faults`: {machine}.", ""]
    return "\n".join([*head, "| promise | tried | broken |", "| --- | ---: | ---: |", *rows, ""])
