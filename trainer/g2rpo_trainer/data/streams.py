"""The records of one task in the order of a run; tasks whose records are drawn without end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from typing import Any, TypeVar

from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import Data
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import BrokenRecord, Record
from g2rpo_trainer.tasks import TASKS_BY_SOURCE, ImageTask, Task

from .tables import need_library

# Held-out items do not depend on the run's seed, so that all runs are compared on the same ones.
_HELDOUT_SEED = 0

PREFIX = "reasoning-gym:"

PROBLEM_TYPE = "reasoning-gym"
"""Problem type of records of reasoning-gym, whose ``answer`` is the entry that the scorer wants."""

# Draws until one falls on the right side of the hash: more than ever happens by chance.
_ATTEMPTS = 1000
# Some data sets prepare all of their items in advance, so this is not more than needed.
_ITEMS = 10_000


T = TypeVar("T")
Use = Callable[[Record], T]
"""Turns a record into what the caller needs of it; raises `BrokenRecord` if that is impossible."""


class Stream(ABC):
    """One task's records, to train on and held out."""

    name: str
    problem_types: dict[str, int]  # type -> number of records; 0 if drawn without end
    reward_kind: str  # shape of the reward, or the problem types, for people
    parts: frozenset[str]
    training_size: int | None  # None if drawn without end
    held_out_size: int | None

    @abstractmethod
    def training(self, seed: int, turn: int, position: int, use: Use[T]) -> T:
        """Return ``use(record)`` of a training record; RunError if none may be used.

        `turn` counts the earlier prompts of this task, `position` those of any. `use` is called
        once with each record that is tried.
        """

    @abstractmethod
    def held_out(self, count: int, use: Use[T]) -> Iterator[T]:
        """Yield ``use(record)`` of `count` held-out records, or of all where there are fewer."""


def _use_drawn(record: Record, use: Use[T]) -> T:
    # A record that is drawn without end has no neighbour that could take its place.
    try:
        return use(record)
    except BrokenRecord as error:
        raise RunError(f"{record.place}: {error}") from error


class BuiltinStream(Stream):
    """A task that is built in."""

    training_size = held_out_size = None

    def __init__(self, task: Task[Any], level: int | None) -> None:
        self.name, self._task, self._level = task.name, task, level
        self.problem_types = {task.problem_type: 0}
        self.reward_kind = task.reward_kind
        self.parts = frozenset({"images" if isinstance(task, ImageTask) else "text"})

    def training(self, seed: int, turn: int, position: int, use: Use[T]) -> T:
        """Draw the item of this position of the run."""
        item = self._task.item(seed, position, level=self._level)
        place = f"{self.name}, item {position} of seed {seed}"
        return _use_drawn(replace(item.record, place=place), use)

    def held_out(self, count: int, use: Use[T]) -> Iterator[T]:
        """Draw items that hash to the other side."""
        for number in range(count):
            item = self._task.item(_HELDOUT_SEED, number, split="heldout", level=self._level)
            place = f"{self.name}, held-out item {number}"
            yield _use_drawn(replace(item.record, place=place), use)


def builtin_streams(data: Data) -> list[Stream]:
    """Return the built-in tasks that a configuration names."""
    tasks = TASKS_BY_SOURCE[data.source]
    return [BuiltinStream(tasks[name], data.level) for name in data.tasks]


def is_held_out(digest: int, fraction: float) -> bool:
    """Tell whether a record is held out, which its digest of 64 bits alone decides."""
    return digest < fraction * 2**64


class ReasoningStream(Stream):
    """One data set of reasoning-gym with its default settings."""

    parts = frozenset({"text"})
    training_size = held_out_size = None

    def __init__(self, name: str, fraction: float) -> None:
        self.name, self._fraction = name, fraction
        self.problem_types = {PROBLEM_TYPE: 0}
        self.reward_kind = PROBLEM_TYPE
        self._dataset = _dataset(name)

    def training(self, seed: int, turn: int, position: int, use: Use[T]) -> T:
        """Draw the item of this position of the run."""
        return _use_drawn(self._draw(seed, position, held_out=False), use)

    def held_out(self, count: int, use: Use[T]) -> Iterator[T]:
        """Draw items whose questions hash to the other side."""
        for index in range(count):
            yield _use_drawn(self._draw(_HELDOUT_SEED, index, held_out=True), use)

    def _draw(self, seed: int, position: int, *, held_out: bool) -> Record:
        for attempt in range(_ATTEMPTS):
            stream = f"{self.name}:{seed}:{held_out}:{position}:{attempt}"
            index = _hash(stream) % _ITEMS
            entry = self._dataset[index]
            if is_held_out(_hash(entry["question"]), self._fraction) == held_out:
                return _record(self.name, index, entry)
        side = "held-out" if held_out else "training"
        raise RunError(
            f"{PREFIX}{self.name} has too few different questions: "
            f"{_ATTEMPTS} draws gave no {side} one"
        )


def reasoning_streams(data: Data) -> list[Stream]:
    """Return the data sets that ``reasoning-gym:NAME,NAME`` names."""
    names = [name.strip() for name in data.source.removeprefix(PREFIX).split(",")]
    known_names = need_library("reasoning_gym", f"data.source {data.source!r}").factory.DATASETS
    for name in names:
        if name not in known_names:
            known = unknown_name("data set of reasoning-gym", name, sorted(known_names))
            raise RunError(f"data.source: {known}")
    return [ReasoningStream(name, data.eval_fraction) for name in dict.fromkeys(names)]


def score_answer(answer: str, truth: Mapping[str, Any]) -> float:
    """Score an answer from 0 to 1 by reasoning-gym's own scorer, which takes the whole entry.

    Examples
    --------
    >>> entry = {"dataset": "chain_sum", "question": "2 + 2 =", "answer": "4", "metadata": {}}
    >>> score_answer("4", entry), score_answer("5", entry)
    (1.0, 0.0)
    """
    score = float(_dataset(truth["dataset"]).score_answer(answer=answer, entry=dict(truth)))
    return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0


@cache
def _dataset(name: str) -> Any:
    reasoning_gym = need_library("reasoning_gym", f"data set {name!r}")
    try:
        # Its seed is ours, so that item `index` is the same in every run.
        return reasoning_gym.create_dataset(name, seed=0, size=_ITEMS)
    except (AssertionError, ValueError) as error:  # how they refuse settings, or the lack of them
        text = " ".join(str(error).split())
        raise RunError(f"data.source: {PREFIX}{name} cannot be made ({text})") from None


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _record(name: str, index: int, entry: Mapping[str, Any]) -> Record:
    return Record(
        problem=entry["question"],
        # The scorers want the whole entry, so the entry is the truth that the reward is given.
        answer={"dataset": name, **entry},
        problem_type=PROBLEM_TYPE,
        task=name,
        place=f"{PREFIX}{name}, item {index}",
    )
