"""All stored records under one number each, with what one look at them tells."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from g2rpo._shown import shown
from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import Data
from g2rpo_trainer.errors import RunError

from .broken import BrokenRecord
from .record import PromptRecord, Reading, Row, read_row
from .streams import StoredStream, Stream
from .tables import Table

# So many broken records are told by name.
_EXAMPLES = 3


class SkippedState(TypedDict):
    """Records that turned out to be broken in use: their numbers, and what is wrong with some."""

    numbers: list[int]
    examples: list[str]


class Skipped:
    """Which records are broken, and what is wrong with the first of them."""

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}
        self._scanned = 0
        self.examples: list[str] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, number: int, reason: str) -> None:
        """Count a record once, however often it is met."""
        if number not in self._numbers and len(self.examples) < _EXAMPLES:
            self.examples.append(reason)
        self._numbers[number] = None

    def end_scan(self) -> None:
        """Note that what comes from now on is found in use."""
        self._scanned = len(self._numbers)

    def state(self) -> SkippedState:
        """Return what was found in use, as JSON holds it."""
        return {
            "numbers": list(self._numbers)[self._scanned :],
            "examples": self.examples[min(self._scanned, _EXAMPLES) :],
        }

    def restore(self, state: SkippedState | None) -> None:
        """Go back to what :meth:`state` returned, or to nothing beyond the scan."""
        found = state or {"numbers": [], "examples": []}
        self._numbers = dict.fromkeys([*list(self._numbers)[: self._scanned], *found["numbers"]])
        self.examples[min(self._scanned, _EXAMPLES) :] = found["examples"]


class Library:
    """All rows of all tables under one number each, with what is known of them after one look."""

    def __init__(
        self,
        tables: Sequence[Table],
        data: Data,
        check: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._tables, self._data = tables, data
        self._readings = [_reading(table, data, check) for table in tables]
        self._ends = np.cumsum([len(table) for table in tables])
        self.skipped = Skipped()
        #: Returns what is wrong with a record beyond what its row says, when it is opened, or None.
        self.find_fault: Callable[[PromptRecord], str | None] = lambda record: None
        self._scan()

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks, in the order in which they first appear."""
        return list(self._tasks)

    def streams(self) -> list[Stream]:
        """Return a stream for each task, in the order in which tasks first appear."""
        numbers, digests, tasks, types = self._columns
        names, kinds = list(self._tasks), list(self._types)
        chosen = [name for name in names if not self._data.tasks or name in self._data.tasks]
        return [
            StoredStream(
                name,
                numbers[tasks == self._tasks[name]],
                digests[tasks == self._tasks[name]],
                [kinds[kind] for kind in types[tasks == self._tasks[name]]],
                fraction=self._data.eval_fraction,
                open_record=self._open,
                skip_broken=self._data.skip_broken,
            )
            # Also the others, so that an unknown name is told what there is.
            for name in chosen or names
        ]

    def _scan(self) -> None:
        numbers, digests, tasks, types = array("q"), array("Q"), array("i"), array("i")
        self._tasks: dict[str, int] = {}
        self._types: dict[str, int] = {}
        for number, row in enumerate(self._rows()):
            if isinstance(row, BrokenRecord):
                self.skipped.add(number, f"{self._place(number)}: {row}")
                continue
            numbers.append(number)
            digests.append(row.digest())
            tasks.append(self._tasks.setdefault(row.task, len(self._tasks)))
            types.append(self._types.setdefault(row.problem_type, len(self._types)))
        self._columns = (
            np.asarray(numbers, np.int64),
            np.asarray(digests, np.uint64),
            np.asarray(tasks),
            np.asarray(types),
        )
        self.skipped.end_scan()
        broken = len(self.skipped)
        if broken and (not self._data.skip_broken or not len(numbers)):
            raise RunError(_all_broken(self.skipped.examples, broken, broken + len(numbers)))

    def _rows(self) -> Iterable[Row | BrokenRecord]:
        unseen = dict(self._data.columns)
        columns: dict[str, None] = {}
        for table, reading in zip(self._tables, self._readings, strict=True):
            for found in table.scan():
                try:
                    if isinstance(found, BrokenRecord):
                        raise found
                    if unseen:
                        columns |= dict.fromkeys(found)
                        unseen = {key: name for key, name in unseen.items() if name not in found}
                    yield read_row(found, reading)
                except BrokenRecord as error:
                    yield error
        # Else a slip of the pen would leave all records without images, say, and nobody would know.
        for key, name in unseen.items():
            raise RunError(f"data.columns.{key}: {unknown_name('column', name, columns)}")

    def _open(self, number: int) -> PromptRecord | BrokenRecord:
        index, row = self._at(number)
        table, reading = self._tables[index], self._readings[index]
        try:
            record = read_row(table.row(row), reading).record(table.place(row), reading)
            if fault := self.find_fault(record):
                raise BrokenRecord(fault)
            return record
        except BrokenRecord as error:
            text = f"{table.place(row)}: {error}"
            self.skipped.add(number, text)
            return BrokenRecord(text)

    def _at(self, number: int) -> tuple[int, int]:
        index = int(np.searchsorted(self._ends, number, side="right"))
        return index, number - (int(self._ends[index - 1]) if index else 0)

    def _place(self, number: int) -> str:
        index, row = self._at(number)
        return self._tables[index].place(row)


def _reading(table: Table, data: Data, check: Callable[[Mapping[str, Any]], None]) -> Reading:
    images = _folder("image_dir", data.image_dir) or table.folder
    return Reading(
        task=table.task,
        problem_type=data.problem_type,
        columns=data.columns,
        check=check,
        image_dir=images,
        video_dir=_folder("video_dir", data.video_dir) or images,
        video_frames=data.video_frames,
    )


def _folder(setting: str, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value).expanduser()
    if not path.is_dir():
        raise RunError(f"data.{setting} is {shown(value)}, which is not a folder")
    return path


def _all_broken(examples: Sequence[str], broken: int, total: int) -> str:
    more = f"\n… and {broken - len(examples)} more" if broken > len(examples) else ""
    advice = "" if broken == total else ", or set data.skip_broken: true"
    return (
        f"{broken} of {total} records cannot be used:\n"
        + "\n".join(examples)
        + more
        + f"\nput them right{advice}"
    )
