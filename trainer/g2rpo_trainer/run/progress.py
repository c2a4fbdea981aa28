"""Where a run stands: what it carries from step to step beside weights and controllers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_trainer.run.evaluation import Evaluation

if TYPE_CHECKING:
    from g2rpo_trainer.data.stored import SkippedState


@dataclass
class Progress:
    """Counters of a run, all of them in its checkpoints.

    Attributes
    ----------
    step : int
        Steps done.
    position : int
        Prompts drawn so far; from it and the seed follow the next ones.
    skipped_steps : int
        Optimiser steps that were not taken because a gradient was not finite.
    skipped_in_a_row : int
        How many of them came last, without one that was taken since.
    empty_steps : int
        Steps in which dynamic sampling kept no prompt, so that nothing was learned.
    seconds : float
        Time spent.
    before : Evaluation or None
        Of the held-out items before the first step.
    skipped_records : SkippedState or None
        Records that turned out to be broken when they were used.

    Examples
    --------
    >>> progress = Progress(step=3, position=24)
    >>> Progress.from_json(progress.to_json()) == progress
    True
    """

    step: int = 0
    position: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    empty_steps: int = 0
    seconds: float = 0.0
    before: Evaluation | None = None
    skipped_records: SkippedState | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the counters as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Progress:
        """Restore what ``to_json`` returned."""
        before = state["before"]
        return cls(**{**state, "before": None if before is None else Evaluation(*before)})
