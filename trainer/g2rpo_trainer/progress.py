"""The counters of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from g2rpo_trainer.answers import Evaluation

if TYPE_CHECKING:
    from g2rpo_trainer.data.stored import SkippedState


@dataclass
class Progress:
    """Counters of a run, all of them saved in its checkpoints.

    Attributes
    ----------
    step : int
        Steps done.
    position : int
        Prompts drawn so far; it determines the next ones, together with the seed.
    skipped_steps : int
        Optimiser steps that were skipped because the gradient was not finite.
    skipped_in_a_row : int
        Number of the most recent optimiser steps that were skipped.
    empty_steps : int
        Steps in which dynamic sampling kept no prompt, so that nothing was learned.
    seconds : float
        Duration of the run, over all its processes one after another.
    before : Evaluation or None
        Evaluation on the held-out items before the first step.
    skipped_records : SkippedState or None
        Records that proved broken when they were used.

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
        """Return the counters for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Progress:
        """Restore the counters from the result of ``to_json``."""
        before = state["before"]
        return cls(**{**state, "before": None if before is None else Evaluation(**before)})
