"""Which records a step trains on, and which are held out."""

from __future__ import annotations

from g2rpo.run.sections import Data
from g2rpo.tasks import TASKS, Record

# Held-out items do not depend on the run's seed, so that all runs are compared on the same ones.
_HELDOUT_SEED = 0


def training_records(data: Data, *, seed: int, step: int, prompts: int) -> list[Record]:
    """Return the records of one step; they follow from the arguments alone.

    A resumed run therefore sees the same data in the same order, with no position to restore.

    Parameters
    ----------
    data : Data
        Tasks and difficulty.
    seed : int
        The run's seed.
    step : int
        From 0.
    prompts : int
        Number of records.

    Returns
    -------
    list of Record
        The tasks in turn; the turn goes on from step to step, so that any number of prompts shares
        out evenly over time.
    """
    positions = range(step * prompts, (step + 1) * prompts)
    tasks = [TASKS[data.tasks[position % len(data.tasks)]] for position in positions]
    return [
        task.item(seed, position, level=data.level).record
        for task, position in zip(tasks, positions, strict=True)
    ]


def heldout_records(data: Data, task: str) -> list[Record]:
    """Return the task's held-out records, the same in every run."""
    return [
        TASKS[task].item(_HELDOUT_SEED, index, split="heldout", level=data.level).record
        for index in range(data.eval_items)
    ]
