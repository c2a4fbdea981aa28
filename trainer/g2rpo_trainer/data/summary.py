"""What a source has, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSummary:
    """What a source has of one task.

    Attributes
    ----------
    problem_types : dict of str to int
        Problem type -> number of records; 0 if they are drawn without end.
    training, held_out : int or None
        Numbers of records; None if they are drawn without end.
    share : float
        Of the prompts of a run.
    """

    problem_types: dict[str, int]
    training: int | None
    held_out: int | None
    share: float


@dataclass(frozen=True)
class Summary:
    """What a source has, for the table at the start of a run.

    Attributes
    ----------
    tasks : dict of str to TaskSummary
        In the order of the tasks.
    skipped : int
        Broken records that were left out so far.
    examples : list of str
        What is wrong with the first of them.
    """

    tasks: dict[str, TaskSummary]
    skipped: int
    examples: list[str]
