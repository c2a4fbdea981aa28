"""Which records a step trains on and which are held out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from g2rpo.rewards import RewardFunction, check_record, with_own
from g2rpo_trainer.config import Data, TrainConfig
from g2rpo_trainer.data import PromptRecord, Source, open_source
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.tasks import TASKS_BY_SOURCE

# By the text of a configuration's section, which holds lists and cannot be a key itself: the
# source, and the functions with which its records were checked.
_opened: dict[str, tuple[Source, dict[str, str]]] = {}


def source_of(data: Data, functions: Mapping[str, str] | None = None) -> Source:
    """Return the source that a configuration names, opened and checked once a process.

    Parameters
    ----------
    data : Data
        What the policy is asked.
    functions : mapping, optional
        Problem type -> import path of a reward of the user's own, which a record may then name.
        Left out, the source is the one that was opened before.

    Raises
    ------
    RunError
        If the source cannot be used, or an import path leads nowhere.
    """
    key = data.model_dump_json()
    wanted = dict(functions or {})
    source, known = _opened.get(key, (None, wanted))
    if source is None or (functions is not None and wanted != known):
        check = partial(check_record, functions=_loaded(wanted))
        source = open_source(data, check=check)
        _opened[key] = source, wanted
    return source


def with_tasks(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the tasks that its source has, where it names none itself.

    The source is opened and its records are checked with the configuration's own rewards.

    Raises
    ------
    RunError
        If the source cannot be used, the configuration shapes a task that the source lacks, or in
        a way that no response can meet.
    """
    functions = config.rewards.functions
    source = source_of(config.data, functions)
    if config.data.tasks:
        config.check_tasks(source.known_tasks)
        return config
    data = config.data.model_copy(update={"tasks": list(source.tasks)})
    # The same records, checked already.
    _opened[data.model_dump_json()] = source, dict(functions)
    named = config.model_copy(update={"data": data})
    named.check_tasks(source.known_tasks)
    return named


def own_functions(config: TrainConfig) -> dict[str, str]:
    """Return the rewards that the run has beside :data:`g2rpo.rewards.ACCURACY`.

    Returns
    -------
    dict
        Problem type -> import path: what the source brings with it, and the user's own.
    """
    return {**source_of(config.data).reward_functions, **config.rewards.functions}


def _loaded(functions: Mapping[str, str]) -> dict[str, RewardFunction]:
    try:
        return with_own(functions)
    except (ValueError, TypeError) as error:
        raise RunError(f"rewards.functions: {error}") from None


def reward_kinds(data: Data) -> dict[str, str]:
    """Return what kind of reward each task has: that of a built-in task, or its problem types."""
    if data.source in TASKS_BY_SOURCE:
        tasks_of_source = TASKS_BY_SOURCE[data.source]
        return {task: tasks_of_source[task].reward_kind for task in data.tasks}
    tasks = source_of(data).summary().tasks
    return {task: ", ".join(tasks[task].problem_types) for task in data.tasks}


def training_records(data: Data, *, seed: int, position: int, prompts: int) -> list[PromptRecord]:
    """Return the next records of a run; they follow from the arguments alone.

    A resumed run therefore needs its position and nothing else to see the same data in the same
    order, also where a step draws more prompts than it keeps.

    Parameters
    ----------
    data : Data
        Source, tasks and their mixture.
    seed : int
        The run's seed.
    position : int
        How many prompts the run has drawn before.
    prompts : int
        Number of records.

    Returns
    -------
    list of PromptRecord
        Every stretch of the run holds each task in its share; built-in tasks take turns.
    """
    return source_of(data).training_records(seed=seed, position=position, prompts=prompts)


def heldout_records(data: Data, task: str) -> list[PromptRecord]:
    """Return the task's held-out records, the same in every run; fewer where it has no more."""
    return source_of(data).held_out_records(task, data.eval_items)
