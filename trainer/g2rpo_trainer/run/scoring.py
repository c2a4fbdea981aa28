"""How a run scores responses: which functions, in which processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from g2rpo.rewards import RewardFunction, RewardPool, Weights, find_type, may_take_long, with_own
from g2rpo.rewards.pool import default_workers
from g2rpo.rewards.score import STRUCTURE_WEIGHT
from g2rpo_trainer.config import BUILTIN_SOURCES, TrainConfig
from g2rpo_trainer.data import Source
from g2rpo_trainer.launch import Launch


def open_pool(config: TrainConfig, source: Source) -> RewardPool:
    """Return the pool that scores a run's responses; close it at the end of the run.

    Parameters
    ----------
    config : TrainConfig
        Its rewards section.
    source : Source
        Of the records, with the rewards that they need.

    Returns
    -------
    RewardPool
        In processes of its own if ``rewards.workers`` says so, or by default if any problem type
        of the data may take long.

    Raises
    ------
    ValueError
        If an import path leads nowhere.
    """
    options, functions = config.rewards, source.reward_functions
    workers = options.workers
    tasks = source.summary().tasks.values()
    types = {kind for task in tasks for kind in task.problem_types}
    if workers is None and not _any_takes_long(types, with_own(functions)):
        workers = 0
    workers = _of_this_process(workers)
    return RewardPool(
        workers, functions=functions, seconds=options.timeout, skip_errors=options.skip_errors
    )


def reward_weights(config: TrainConfig) -> Weights:
    """Return what each component of a reward weighs in the run.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> reward_weights(load_config())
    Weights(accuracy=0.9, format=0.1, structure=0.0)
    """
    weights = config.rewards.weights
    structure = weights.structure
    if structure is None:
        # Answers to the built-in tasks have no shape beyond the format that is rewarded already.
        structure = 0.0 if config.data.source in BUILTIN_SOURCES else STRUCTURE_WEIGHT
    return Weights(weights.accuracy, weights.format, structure)


def _of_this_process(workers: int | None) -> int | None:
    """Divide the workers of a machine among the processes that train on it together."""
    sharers = Launch.read().local_size
    if sharers == 1 or workers == 0:
        return workers
    return max(1, (default_workers() if workers is None else workers) // sharers)


def _any_takes_long(types: Iterable[str], functions: Mapping[str, RewardFunction]) -> bool:
    return any(may_take_long(functions[find_type(kind, functions)]) for kind in types)
