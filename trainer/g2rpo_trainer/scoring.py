"""Rewards of a batch of responses: computed once, in worker processes where that can take long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo._suggest import did_you_mean
from g2rpo.rewards import (
    RewardError,
    RewardFunction,
    RewardPool,
    TruthError,
    Weights,
    WorkerStartError,
    find_type,
    may_take_long,
    with_own,
)
from g2rpo.rewards.pool import default_workers
from g2rpo.rewards.score import STRUCTURE_WEIGHT
from g2rpo_trainer.config import BUILTIN_SOURCES, Data, RewardWeights
from g2rpo_trainer.config import Rewards as RewardOptions
from g2rpo_trainer.data import Source
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.launch import Launch
from g2rpo_trainer.record import Record

Floats = npt.NDArray[np.floating[Any]]

_FAULTS = {"timeout": "timeouts", "died": "crashes", "error": "errors"}


@dataclass(frozen=True)
class Rewards:
    """Rewards of N responses and their components, on the host.

    Components are from 0 to 1; a user's own accuracy may leave that range. A response whose reward
    function failed has neither accuracy nor reward: both are NaN.

    Attributes
    ----------
    reward : array (N,)
        Weighted sum of the components, in reward units.
    accuracy, format, structure : array (N,)
        The components.
    """

    reward: Floats
    accuracy: Floats
    format: Floats
    structure: Floats

    def columns(self) -> dict[str, Floats]:
        """Return the reward and its components by their names."""
        return dict(vars(self))

    def rows(self, rows: npt.NDArray[Any]) -> Rewards:
        """Return the rewards of some responses, given by their numbers or by a mask."""
        return Rewards(*(column[rows] for column in self.columns().values()))

    def without(self, absent: npt.NDArray[np.bool_]) -> Rewards:
        """Return the rewards with NaN, which no statistic counts, where a response is absent."""
        columns = self.columns().values()
        return Rewards(*(np.where(absent, np.asarray(np.nan, c.dtype), c) for c in columns))


class Scorer:
    """Scores the responses of a run, and owns the worker processes in which that happens.

    A context manager: leaving it ends the processes.

    Parameters
    ----------
    options : Rewards
        Section ``rewards`` of the configuration.
    data : Data
        Section ``data``, by whose source a weight that is null is chosen.
    source : Source
        Source of the records.

    Raises
    ------
    RunError
        If an import path leads nowhere.

    Examples
    --------
    >>> from g2rpo_trainer.data import open_source
    >>> rows = [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(20)]
    >>> source = open_source(Data(problem_type="numerical"), rows=rows)
    >>> (record,) = source.training_records(seed=0, position=0, prompts=1)
    >>> with Scorer(RewardOptions(), Data(), source) as scorer:
    ...     scorer([record], [f"<answer>{record.answer}</answer>", "none"]).accuracy
    array([1., 0.], dtype=float32)
    """

    def __init__(self, options: RewardOptions, data: Data, source: Source) -> None:
        self._weights = reward_weights(options.weights, data.source)
        self._reported: Counter[str] = Counter()
        functions = source.reward_functions
        try:
            self._pool = RewardPool(
                _workers(options.workers, source, with_own(functions)),
                functions=functions,
                seconds=options.timeout,
                skip_errors=options.skip_errors,
            )
        except ValueError as error:
            raise RunError(f"rewards.functions: {error}") from None
        except ImportError as error:
            raise RunError(str(error)) from error

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def counts(self) -> Counter[str]:
        """Responses since the start that could not be scored: ``timeout``, ``died``, ``error``."""
        return Counter({str(fault): count for fault, count in self._pool.counts.items()})

    def metrics(self) -> dict[str, float]:
        """Return how many responses could not be scored since the last call, by reason."""
        counts = self.counts
        new, self._reported = counts - self._reported, counts
        return {f"rewards/{name}": float(new[fault]) for fault, name in _FAULTS.items()}

    def __call__(
        self,
        records: Sequence[Record],
        texts: Sequence[str],
        *,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> Rewards:
        """Score responses; those of one record are next to each other.

        Parameters
        ----------
        records : sequence of Record
            P records; there may be none.
        texts : sequence of str
            N = P · n responses.
        dtype : type
            Floating dtype of the rewards. Single precision, as the losses take them, makes rewards
            equal that differ by a rounding; the means of an evaluation take double.

        Returns
        -------
        Rewards

        Raises
        ------
        RunError
            If a reward function fails, or a record's answer does not fit its problem type; the text
            says where the record stands.
        """
        each = len(texts) // max(len(records), 1)
        rows = [row for record in records for row in [record.as_row()] * each]
        places = [place for record in records for place in [_place(record)] * each]
        try:
            scored = self._pool.score(rows, texts, places=places)
        except RewardError as error:
            advice = "put it right, or set rewards.skip_errors: true"
            raise RunError(f"{error}; {advice}") from error
        except (TruthError, WorkerStartError, ImportError) as error:
            raise RunError(str(error)) from error
        totals = np.asarray(scored.totals(self._weights), dtype)
        components = np.asarray(scored.components, dtype).reshape(-1, len(self._weights))
        return Rewards(totals, *components.T)


def reward_weights(weights: RewardWeights, source: str) -> Weights:
    """Return the weight of each component in the reward of a run.

    Parameters
    ----------
    weights : RewardWeights
        ``rewards.weights`` of the configuration.
    source : str
        Its ``data.source``, by which the weight of the structure is chosen if it is null.

    Examples
    --------
    >>> reward_weights(RewardWeights(), "builtin")
    Weights(accuracy=0.9, format=0.1, structure=0.0)
    """
    structure = weights.structure
    if structure is None:
        # Answers to the built-in tasks have no shape beyond the format that is rewarded already.
        structure = 0.0 if source in BUILTIN_SOURCES else STRUCTURE_WEIGHT
    return Weights(weights.accuracy, weights.format, structure)


def unused_rewards(functions: Iterable[str], source: Source) -> list[str]:
    """Return a line for each reward of the user's own whose problem type no record has.

    Parameters
    ----------
    functions : iterable of str
        Problem types of ``rewards.functions``.
    source : Source
        Source of the records, opened with these functions.

    Examples
    --------
    >>> from g2rpo_trainer.data import open_source
    >>> rows = [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(20)]
    >>> functions = {"colour": "operator:eq"}
    >>> source = open_source(Data(problem_type="numerical"), rows=rows, functions=functions)
    >>> print(*unused_rewards(functions, source))
    rewards.functions: no record has problem type 'colour' (there are: numerical); its function is
    not used
    """
    types = _problem_types(source)
    known = with_own(source.reward_functions)
    used = {find_type(kind, known) for kind in types}
    there = ", ".join(sorted(types))
    return [
        f"rewards.functions: no record has problem type {name!r}{did_you_mean(name, sorted(types))}"
        f" (there are: {there}); its function is not used"
        for name in functions
        if find_type(name, known) not in used
    ]


def _problem_types(source: Source) -> set[str]:
    return {kind for task in source.summary().tasks.values() for kind in task.problem_types}


def _workers(
    workers: int | None, source: Source, functions: Mapping[str, RewardFunction]
) -> int | None:
    """Return the number of worker processes of this rank; None is the pool's own default.

    By default there are none, unless the scoring of some problem type of the data may take long.
    """
    if workers is None and not _any_takes_long(_problem_types(source), functions):
        workers = 0
    # Ranks of one machine divide its workers.
    sharers = Launch.read().local_size
    if sharers == 1 or workers == 0:
        return workers
    return max(1, (default_workers() if workers is None else workers) // sharers)


def _any_takes_long(types: Iterable[str], functions: Mapping[str, RewardFunction]) -> bool:
    return any(may_take_long(functions[find_type(kind, functions)]) for kind in types)


def _place(record: Record) -> str:
    # Records of the user's own making need not know where they stand.
    return record.place or f"record of task {record.task!r}"
