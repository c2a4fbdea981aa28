"""How often a promise was tried and broken."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table


class NotPossible(Exception):
    """The machine does not allow what a part needs."""


@dataclass
class Count:
    """Tries of one promise, and a line on each that broke it.

    Attributes
    ----------
    promise : str
        Sentence that is true of every try.
    tried : int
        Number of tries.
    broken : list of str
        One line for each try that broke the promise.
    figure : str
        Measurement, such as the longest time of a try.
    """

    promise: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)
    figure: str = ""

    @contextmanager
    def trying(self, what: object = "") -> Iterator[None]:
        """Count a try; any exception inside breaks the promise, and is noted with ``what``."""
        self.tried += 1
        try:
            yield
        except NotPossible:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
            self.broken.append(f"{place}: {type(error).__name__}: {error}: {what}"[:800])

    def expect(self, holds: bool, what: object) -> None:
        """Count a try that breaks the promise unless it holds."""
        with self.trying(what):
            assert holds


@dataclass(frozen=True)
class Result:
    """Counts of a part, and how they were made.

    Attributes
    ----------
    part : str
        Name of the part.
    counts : list of Count
        One for each promise.
    share : float
        Number of tries, relative to the default.
    seconds : float
        Time of the part by the wall clock.
    place : str
        Date, version of Python, machine and its load.
    """

    part: str
    counts: list[Count]
    share: float
    seconds: float
    place: str

    @property
    def is_broken(self) -> bool:
        """Whether any promise was broken or could not be tried."""
        return any(count.broken or not count.tried for count in self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON holds it; ``Result.from_json`` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Result:
        """Return a result from :meth:`to_json`."""
        return cls(**{**content, "counts": [Count(**each) for each in content["counts"]]})


def as_table(counts: Sequence[Count]) -> Table:
    """Return a table that fits a terminal."""
    table = Table("promise", "tried", "broken", "figure")
    for column in table.columns[1:3]:
        column.justify = "right"
    for count in counts:
        table.add_row(count.promise, f"{count.tried:,}", f"{len(count.broken):,}", count.figure)
    return table


def as_markdown(results: Sequence[Result]) -> str:
    """Return the results as a page: a table of promises, and one of how each part was run."""
    rows = [
        f"| {each.promise} | {each.tried:,} | {len(each.broken):,} | {each.figure} |"
        for result in results
        for each in result.counts
    ]
    parts = [
        f"| {each.part} | {each.share:g} | {each.seconds:,.0f} | {each.place} |" for each in results
    ]
    return "\n".join(
        [
            *(
                "# Faults and bad input",
                "",
                "`python -m tests.faults`; tried 0 times: not possible",
            ),
            *("on that machine.", "", "| promise | tried | broken | figure |"),
            *("| --- | ---: | ---: | --- |", *rows, "", "## How each part was run", ""),
            *("| part | share | seconds | when and where |", "| --- | ---: | ---: | --- |", *parts),
            "",
        ]
    )
