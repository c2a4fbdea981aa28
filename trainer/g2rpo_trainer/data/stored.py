"""Stored records: checked once, then held out or trained on in epochs; broken ones are counted."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from g2rpo._shown import shown
from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import Data
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord

from .columns import Reading, Row, read_row
from .mixing import shuffled
from .streams import Stream, T, Use, is_held_out
from .tables import Found, Table

# Number of broken records whose faults are kept as examples.
_EXAMPLES = 3


class SkippedState(TypedDict):
    """Records that turned out to be broken in use: their numbers, and the faults of some."""

    numbers: list[int]
    examples: list[str]


class Skipped:
    """Numbers of the broken records, and the faults of the first of them."""

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
        """Mark the end of the scan: records that are added later were found in use."""
        self._scanned = len(self._numbers)

    def state(self) -> SkippedState:
        """Return the records that were found in use, for a JSON file."""
        return {
            "numbers": list(self._numbers)[self._scanned :],
            "examples": self.examples[min(self._scanned, _EXAMPLES) :],
        }

    def restore(self, states: Sequence[SkippedState]) -> None:
        """Replace the records that were found in use by those of several results of `state`."""
        numbers = [number for state in states for number in state["numbers"]]
        self._numbers = dict.fromkeys([*list(self._numbers)[: self._scanned], *numbers])
        examples = dict.fromkeys(example for state in states for example in state["examples"])
        self.examples[min(self._scanned, _EXAMPLES) :] = examples
        del self.examples[_EXAMPLES:]


class Library:
    """All rows of all tables, numbered, with the tasks and digests that a scan has found.

    Tables are read once, from beginning to end; `name` is that of the source, for errors, and
    `check_record` raises ValueError if a record cannot be scored.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        data: Data,
        name: str,
        check_record: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._tables, self._data, self._name = tables, data, name
        self._check_record = check_record
        self._readings = [_reading(table, data) for table in tables]
        self._firsts: list[int] = []  # number of each table's first row
        self.skipped = Skipped()
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
                frozenset(self._parts[name]),
                fraction=self._data.eval_fraction,
                library=self,
                skip_broken=self._data.skip_broken,
            )
            # If no name is known, all of them, for the error that lists them.
            for name in chosen or names
        ]

    def _scan(self) -> None:
        numbers, digests, tasks, types = array("q"), array("Q"), array("i"), array("i")
        self._tasks: dict[str, int] = {}
        self._types: dict[str, int] = {}
        self._parts: dict[str, set[str]] = {}
        for number, row in enumerate(self._rows()):
            if isinstance(row, BrokenRecord):
                self.skipped.add(number, f"{self.place(number)}: {row}")
                continue
            task, problem_type = row.record.task, row.record.problem_type
            numbers.append(number)
            digests.append(row.digest())
            tasks.append(self._tasks.setdefault(task, len(self._tasks)))
            types.append(self._types.setdefault(problem_type, len(self._types)))
            self._parts.setdefault(task, set()).update(_parts(row))
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

    def _rows(self) -> Iterator[Row | BrokenRecord]:
        unseen = dict(self._data.columns)
        columns: dict[str, None] = {}
        count = 0
        for table, reading in zip(self._tables, self._readings, strict=True):
            self._firsts.append(count)
            for found in table.scan():
                count += 1
                if unseen and not isinstance(found, BrokenRecord):
                    columns |= dict.fromkeys(found)
                    unseen = {key: name for key, name in unseen.items() if name not in found}
                yield self._checked(found, reading)
        if not count:
            raise RunError(f"{self._name}: has no records")
        # A misspelt column would otherwise leave all records without images, say, in silence.
        for key, name in unseen.items():
            raise RunError(f"data.columns.{key}: {unknown_name('column', name, columns)}")

    def _checked(self, found: Found, reading: Reading) -> Row | BrokenRecord:
        if isinstance(found, BrokenRecord):
            return found
        try:
            row = read_row(found, reading)
            row.check(reading, self._check_record)
        except BrokenRecord as error:
            return error
        return row

    def use(self, number: int, use: Use[T]) -> T | BrokenRecord:
        """Read a row again, and use its record; a fault is counted and returned with its place.

        Texts and answer were checked when the table was scanned.
        """
        table, reading, row = self._at(number)
        try:
            return use(read_row(table.row(row), reading).open(table.place(row), reading))
        except BrokenRecord as error:
            text = f"{table.place(row)}: {error}"
            self.skipped.add(number, text)
            return BrokenRecord(text)

    def _at(self, number: int) -> tuple[Table, Reading, int]:
        index = bisect_right(self._firsts, number) - 1
        return self._tables[index], self._readings[index], number - self._firsts[index]

    def place(self, number: int) -> str:
        """Return where a row stands, for messages."""
        table, _, row = self._at(number)
        return table.place(row)


class StoredStream(Stream):
    """Records of files or libraries: each once an epoch, shuffled by the seed.

    They are sorted by their digests first, so that their order in the file has no influence.
    """

    def __init__(
        self,
        name: str,
        numbers: npt.NDArray[np.int64],
        digests: npt.NDArray[np.uint64],
        types: Sequence[str],
        parts: frozenset[str],
        *,
        fraction: float,
        library: Library,
        skip_broken: bool,
    ) -> None:
        order = np.argsort(digests, kind="stable")
        first = library.place(int(numbers[0]))
        held = _held_out(name, digests[order], fraction, first)
        self.name = name
        self.problem_types = dict(Counter(types))
        self.reward_kind = ", ".join(self.problem_types)
        self.parts = parts
        self._training = numbers[order][~held]
        self._held_out = numbers[order][held]
        self.training_size, self.held_out_size = len(self._training), len(self._held_out)
        self._library, self._skip = library, skip_broken

    def training(self, seed: int, turn: int, position: int, use: Use[T]) -> T:
        """Look the record up in the shuffled order of its epoch."""
        size = len(self._training)
        epoch, place = divmod(turn, size)
        key = f"{seed}:{epoch}:{self.name}"
        fault = ""
        for offset in range(size):
            number = self._training[shuffled((place + offset) % size, size, key)]
            found = self._use(int(number), use)
            if not isinstance(found, BrokenRecord):
                return found
            # The next of the epoch takes its place, which again follows from seed and position.
            fault = fault or str(found)
        raise RunError(
            f"task {self.name!r}: none of its {size} training records can be used, such as:\n"
            f"{fault}\nput them right, or leave the task out: name the others in data.tasks"
        )

    def held_out(self, count: int, use: Use[T]) -> Iterator[T]:
        """Open the first of the held-out records in the order of their digests."""
        found = (self._use(int(number), use) for number in self._held_out)
        return islice((item for item in found if not isinstance(item, BrokenRecord)), count)

    def stored(self, use: Use[T], *, held_out: bool) -> Iterator[tuple[int, T]]:
        """Use each record of one side, in the order of the tables, with its number there."""
        numbers = np.sort(self._held_out if held_out else self._training)
        for number in map(int, numbers):
            found = self._use(number, use)
            if not isinstance(found, BrokenRecord):
                yield number, found

    def _use(self, number: int, use: Use[T]) -> T | BrokenRecord:
        found = self._library.use(number, use)
        if isinstance(found, BrokenRecord) and not self._skip:
            raise RunError(f"{found}; put it right, or set data.skip_broken: true") from found
        return found


def _parts(row: Row) -> Iterator[str]:
    if row.images:
        yield "images"
    if row.videos:
        yield "videos"
    if not row.images and not row.videos:
        yield "text"
    if isinstance(row.record.answer, list):
        yield "answers"


def _held_out(
    name: str, digests: npt.NDArray[np.uint64], fraction: float, first: str
) -> npt.NDArray[np.bool_]:
    """Return which of the ascending digests are held out: some, but not all."""
    if digests[0] == digests[-1]:
        count = f"{len(digests)} equal records" if len(digests) > 1 else "1 record"
        raise RunError(
            f"task {name!r} has {count} ({first}); it needs at least two different ones, one to "
            "train on and one to hold out: add some, put its task_type right, or leave the task "
            "out by data.tasks"
        )
    held = np.array([is_held_out(int(digest), fraction) for digest in digests])
    # In a small task the hash may put all on one side; then the nearest to the border goes over.
    if not held.any():
        held = digests == digests[0]
    elif held.all():
        held = digests != digests[-1]
    return held


def _reading(table: Table, data: Data) -> Reading:
    images = _folder("image_dir", data.image_dir) or table.folder
    return Reading(
        task=table.task,
        problem_type=data.problem_type,
        columns=data.columns,
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
