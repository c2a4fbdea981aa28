"""The records of one task in the order of a run: stored ones in epochs, drawn ones without end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from g2rpo_trainer.config import Data
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.tasks import TASKS_BY_SOURCE, Record, Task

from .broken import BrokenRecord
from .permutation import shuffled
from .record import PromptRecord

# Held-out items do not depend on the run's seed, so that all runs are compared on the same ones.
HELDOUT_SEED = 0

#: Number of a stored record -> the record with its images open, or the error of what is broken.
Opener = Callable[[int], PromptRecord | BrokenRecord]


class Stream(ABC):
    """One task's records, to train on and held out.

    Attributes
    ----------
    name : str
        The task.
    problem_types : dict of str to int
        How many records it has of each problem type; 0 if they are drawn without end.
    training_size, held_out_size : int or None
        Numbers of records; None if they are drawn without end.
    """

    name: str
    problem_types: dict[str, int]
    training_size: int | None
    held_out_size: int | None

    @abstractmethod
    def training(self, seed: int, turn: int, position: int) -> PromptRecord:
        """Return a training record.

        Parameters
        ----------
        seed : int
            The run's.
        turn : int
            How many records of this task came before.
        position : int
            How many records of any task came before.
        """

    @abstractmethod
    def held_out(self, count: int) -> list[PromptRecord]:
        """Return `count` held-out records, or all where there are fewer."""


class BuiltinStream(Stream):
    """A task that is built in."""

    training_size = held_out_size = None

    def __init__(self, task: Task[Any], level: int | None) -> None:
        self.name, self._task, self._level = task.name, task, level
        self.problem_types = {task.problem_type: 0}

    def training(self, seed: int, turn: int, position: int) -> PromptRecord:
        """Draw the item of this position of the run."""
        item = self._task.item(seed, position, level=self._level)
        return _placed(item.record, f"{self.name}, item {position} of seed {seed}")

    def held_out(self, count: int) -> list[PromptRecord]:
        """Draw items that hash to the other side."""
        task, level = self._task, self._level
        items = (task.item(HELDOUT_SEED, n, split="heldout", level=level) for n in range(count))
        return [
            _placed(item.record, f"{self.name}, held-out item {number}")
            for number, item in enumerate(items)
        ]


class StoredStream(Stream):
    """Records of files or libraries: each once an epoch, in an order of the seed's.

    Records are put in the order of their digests first, so that the order in the file is without
    influence.
    """

    def __init__(
        self,
        name: str,
        numbers: npt.NDArray[np.int64],
        digests: npt.NDArray[np.uint64],
        types: Sequence[str],
        *,
        fraction: float,
        open_record: Opener,
        skip_broken: bool,
    ) -> None:
        order = np.argsort(digests, kind="stable")
        held = _held_out(name, digests[order], fraction)
        self.name = name
        self.problem_types = dict(Counter(types))
        self._training = numbers[order][~held]
        self._held_out = numbers[order][held]
        self.training_size, self.held_out_size = len(self._training), len(self._held_out)
        self._open, self._skip = open_record, skip_broken

    def training(self, seed: int, turn: int, position: int) -> PromptRecord:
        """Look the record up in the shuffled order of its epoch."""
        size = len(self._training)
        epoch, place = divmod(turn, size)
        key = f"{seed}:{epoch}:{self.name}"
        fault = ""
        for offset in range(size):
            number = self._training[shuffled((place + offset) % size, size, key)]
            record = self._open(int(number))
            if not isinstance(record, BrokenRecord):
                return record
            # The next of the epoch takes its place, which again follows from seed and position.
            if not self._skip:
                raise RunError(f"{record}; put it right, or set data.skip_broken: true")
            fault = fault or str(record)
        raise RunError(
            f"task {self.name!r}: none of its {size} training records can be used, such as:\n"
            f"{fault}\nput them right, or leave the task out: name the others in data.tasks"
        )

    def held_out(self, count: int) -> list[PromptRecord]:
        """Open the first of the held-out records in the order of their digests."""
        records: list[PromptRecord] = []
        for number in self._held_out:
            if len(records) == count:
                break
            record = self._open(int(number))
            if not isinstance(record, BrokenRecord):
                records.append(record)
            elif not self._skip:
                raise RunError(f"{record}; put it right, or set data.skip_broken: true")
        return records


def _placed(record: Record, place: str) -> PromptRecord:
    return cast(PromptRecord, {**record, "place": place})


def builtin_streams(data: Data) -> list[Stream]:
    """Return the built-in tasks that a configuration names."""
    tasks = TASKS_BY_SOURCE[data.source]
    return [BuiltinStream(tasks[name], data.level) for name in data.tasks]


def is_held_out(digest: int, fraction: float) -> bool:
    """Tell on which side a record lies, which its digest of 64 bits alone decides."""
    return digest < fraction * 2**64


def _held_out(name: str, digests: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Return which of the ascending digests are held out: some, but not all."""
    if digests[0] == digests[-1]:
        count = f"{len(digests)} equal records" if len(digests) > 1 else "1 record"
        raise RunError(
            f"task {name!r} has {count}; it needs at least two different ones, "
            "one to train on and one to hold out"
        )
    held = np.array([is_held_out(int(digest), fraction) for digest in digests])
    # In a small task the hash may put all on one side; then the nearest to the border goes over.
    if not held.any():
        held = digests == digests[0]
    elif held.all():
        held = digests != digests[-1]
    return held
