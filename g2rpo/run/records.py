"""Which records a step trains on and which are held out, for every engine."""

from __future__ import annotations

from g2rpo.data import PromptRecord, Source, open_source
from g2rpo.rewards import RewardFunction, with_own
from g2rpo.run.description import RunDescription
from g2rpo.run.sections import Data
from g2rpo.tasks import TASKS

# By the text of a description's section, which holds lists and cannot be a key itself.
_opened: dict[str, Source] = {}


def source_of(data: Data) -> Source:
    """Return the source that a description names, opened and checked once a process."""
    key = data.model_dump_json()
    if key not in _opened:
        _opened[key] = open_source(data)
    return _opened[key]


def with_tasks(description: RunDescription) -> RunDescription:
    """Return the description with the tasks that its source has, where it names none itself."""
    if description.data.tasks:
        return description
    source = source_of(description.data)
    data = description.data.model_copy(update={"tasks": list(source.tasks)})
    _opened[data.model_dump_json()] = source  # the same records, checked already
    return description.model_copy(update={"data": data})


def reward_functions(data: Data) -> dict[str, RewardFunction]:
    """Return the accuracy of every problem type, those that come with the source among them."""
    return with_own(source_of(data).reward_functions)


def reward_kinds(data: Data) -> dict[str, str]:
    """Return what kind of reward each task has: that of a built-in task, or its problem types."""
    if data.source == "builtin":
        return {task: TASKS[task].reward_kind for task in data.tasks}
    tasks = source_of(data).summary().tasks
    return {task: ", ".join(tasks[task].problem_types) for task in data.tasks}


def training_records(data: Data, *, seed: int, step: int, prompts: int) -> list[PromptRecord]:
    """Return the records of one step; they follow from the arguments alone.

    A resumed run therefore sees the same data in the same order, with no position to restore.

    Parameters
    ----------
    data : Data
        Source, tasks and their mixture.
    seed : int
        The run's seed.
    step : int
        From 0.
    prompts : int
        Number of records.

    Returns
    -------
    list of PromptRecord
        Every stretch of the run holds each task in its share; built-in tasks take turns.
    """
    return source_of(data).training_records(seed=seed, step=step, prompts=prompts)


def heldout_records(data: Data, task: str) -> list[PromptRecord]:
    """Return the task's held-out records, the same in every run; fewer where it has no more."""
    return source_of(data).held_out_records(task, data.eval_items)
