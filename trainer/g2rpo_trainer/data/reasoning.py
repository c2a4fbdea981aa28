"""Tasks of the package reasoning-gym: texts drawn on the fly, scored by its own scorers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from typing import Any

from g2rpo._suggest import unknown_name
from g2rpo_trainer.config import Data
from g2rpo_trainer.errors import RunError

from .opening import need_library
from .record import PromptRecord
from .streams import HELDOUT_SEED, Stream, is_held_out

PREFIX = "reasoning-gym:"

#: Problem type of these records, whose ``answer`` is the entry that the scorer wants.
PROBLEM_TYPE = "reasoning-gym"

# Draws until one falls on the right side of the hash: more than ever happens by chance.
_ATTEMPTS = 1000
# Some data sets prepare as many items as they are told to have, so these are not more than needed.
_ITEMS = 10_000


def score_answer(answer: str, truth: Mapping[str, Any]) -> float:
    """Score an answer by reasoning-gym's own scorer.

    Parameters
    ----------
    answer : str
        What stands between the answer tags.
    truth : mapping
        The entry: ``dataset``, ``question``, ``answer``, ``metadata``.

    Returns
    -------
    float
        From 0 to 1.

    Examples
    --------
    >>> entry = {"dataset": "chain_sum", "question": "2 + 2 =", "answer": "4", "metadata": {}}
    >>> score_answer("4", entry), score_answer("5", entry)
    (1.0, 0.0)
    """
    score = float(_dataset(truth["dataset"]).score_answer(answer=answer, entry=dict(truth)))
    return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0


class ReasoningStream(Stream):
    """One data set of reasoning-gym with its default settings."""

    training_size = held_out_size = None

    def __init__(self, name: str, fraction: float) -> None:
        self.name, self._fraction = name, fraction
        self.problem_types = {PROBLEM_TYPE: 0}
        self._dataset = _dataset(name)

    def training(self, seed: int, turn: int, position: int) -> PromptRecord:
        """Draw the item of this position of the run."""
        return self._draw(seed, position, held_out=False)

    def held_out(self, count: int) -> list[PromptRecord]:
        """Draw items whose questions hash to the other side."""
        return [self._draw(HELDOUT_SEED, index, held_out=True) for index in range(count)]

    def _draw(self, seed: int, position: int, *, held_out: bool) -> PromptRecord:
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


def _record(name: str, index: int, entry: Mapping[str, Any]) -> PromptRecord:
    return PromptRecord(
        problem=entry["question"],
        images=[],
        # The scorers want the whole entry, so the entry is the truth that the reward is given.
        answer={"dataset": name, **entry},  # type: ignore[typeddict-item]
        problem_type=PROBLEM_TYPE,
        data_type="text",
        task_type=name,
        options=[],
        place=f"{PREFIX}{name}, item {index}",
    )
