"""What comes out of scoring a batch, and what is raised when it fails."""

from __future__ import annotations

from typing import NamedTuple

from .evaluate import Fault
from .score import PAPER_WEIGHTS, Components, Weights


class RewardError(RuntimeError):
    """A reward function raised, or returned no finite number."""


class Failure(NamedTuple):
    """A response that could not be scored.

    Attributes
    ----------
    row : int
        Its place in the batch.
    number : int
        Its record's number.
    fault : {"timeout", "died", "error"}
        Out of time, its process died twice, or the reward function failed.
    message : str
        One line for people, which names the record and the function.
    """

    row: int
    number: int
    fault: Fault
    message: str


class Scored(NamedTuple):
    """A batch of responses, scored.

    Attributes
    ----------
    components : list of Components
        In the order of the responses.
    failures : list of Failure
        In the same order. After ``timeout`` and ``died`` all components are 0: the response is to
        blame. After ``error`` the accuracy is NaN, that is absent: the function is to blame.
    """

    components: list[Components]
    failures: list[Failure]

    def totals(self, weights: Weights = PAPER_WEIGHTS) -> list[float]:
        """Return the weighted sum of each response's components, in reward units."""
        return [parts.total(weights) for parts in self.components]
