"""Answers to held-out items, as they are handed to the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo_trainer.files import to_json
from g2rpo_trainer.record import Record
from g2rpo_trainer.scoring import Rewards

Sample = dict[str, Any]


class Answers(NamedTuple):
    """Some held-out items of one task with all responses to them.

    Attributes
    ----------
    first : int
        Number of the first item among those of its task.
    records : sequence of Record
        P items that follow one another; there is at least one.
    texts : sequence of str
        N = P · n responses, those to one item next to each other.
    rewards : Rewards
        Rewards of the N responses.
    lengths : array (N,), integer
        Tokens.
    ended : array (N,), bool
        False where the response was cut off at its length limit.
    opened : sequence of str
        What each item's prompt has opened, with which its responses begin; none if no prompt has.
    """

    first: int
    records: Sequence[Record]
    texts: Sequence[str]
    rewards: Rewards
    lengths: npt.NDArray[np.integer[Any]]
    ended: npt.NDArray[np.bool_]
    opened: Sequence[str] = ()

    def samples(self, task: str) -> list[Sample]:
        """Return the responses one by one, each with its item and what it was worth.

        Returns
        -------
        list of dict
            ``task``, ``item`` (its number), ``place`` where it has one, ``problem``, ``answer``,
            ``response``, ``reward`` and its components, ``length``, ``ended``; ``opened`` where the
            response begins with a text of the prompt. A reward that is absent is None.
        """
        each = len(self.texts) // len(self.records)
        columns = {name: column.tolist() for name, column in self.rewards.columns().items()}
        columns |= {"length": self.lengths.tolist(), "ended": self.ended.tolist()}
        samples = []
        for row, text in enumerate(self.texts):
            record = self.records[row // each]
            opened = self.opened[row // each] if self.opened else ""
            samples.append(
                {
                    "task": task,
                    "item": self.first + row // each,
                    **({"place": record.place} if record.place else {}),
                    "problem": record.problem,
                    "answer": record.answer,
                    **({"opened": opened} if opened else {}),
                    "response": text,
                    **{name: to_json(column[row]) for name, column in columns.items()},
                }
            )
        return samples
