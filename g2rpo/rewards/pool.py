"""Scoring of many responses in worker processes, with a time limit for each."""

from __future__ import annotations

import math
import os
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .custom import with_own
from .evaluate import Fault, Job, Outcome, evaluate
from .ground_truth import TruthError
from .registry import RewardFunction, find_type
from .response import parse_response
from .score import PAPER_WEIGHTS, Components, Weights, registered, truth_of
from .workers import Workers


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
        One line that names the record and the function.
    """

    row: int
    number: int
    fault: Fault
    message: str


class Scored(NamedTuple):
    """Rewards of a batch of responses.

    Attributes
    ----------
    components : list of Components
        In the order of the responses.
    failures : list of Failure
        In the same order. After ``timeout`` and ``died`` all components are 0: a fault of the
        response. After ``error`` the accuracy is NaN (absent): a fault of the function.
    """

    components: list[Components]
    failures: list[Failure]

    def totals(self, weights: Weights = PAPER_WEIGHTS) -> list[float]:
        """Return the weighted sum of each response's components, in reward units."""
        return [parts.total(weights) for parts in self.components]


class RewardPool:
    """Processes that score responses, with a time limit for each response.

    Use one pool per run: processes take seconds to start. A process is killed and replaced if a
    response exceeds the time limit, and replaced if it crashes.

    Parameters
    ----------
    workers : int, optional
        Number of processes; by default that of the cores, at most 8. With 0 responses are scored in
        this process, without a time limit; then a function may be a lambda.
    functions : mapping, optional
        Problem type -> function of (answer, truth), or its import path ``module:function``, in
        addition to :data:`ACCURACY`. Functions for processes must be defined at the top of a
        module.
    seconds : float
        Time limit for one response.
    skip_errors : bool
        Make the accuracy absent (NaN) where a reward function raises or returns no finite number,
        and count the failure. By default such an error ends the run.

    Attributes
    ----------
    counts : Counter
        Failures since the start of the pool, by kind: ``timeout``, ``died``, ``error``.

    Raises
    ------
    ValueError
        If an argument is out of its range, or an import path names no function.
    TypeError
        If a function cannot be sent to a process.

    Notes
    -----
    Processes are spawned, not forked, so threads of PyTorch or JAX in this process are safe. Every
    spawned process imports the main script, which therefore needs ``if __name__ == "__main__":``
    around its statements. One thread at a time may call the pool.

    Examples
    --------
    >>> records = [{"problem_type": "numerical", "answer": "7"}] * 2
    >>> with RewardPool(workers=0) as pool:
    ...     scored = pool.score(records, ["<answer>7</answer>", "seven"])
    >>> scored.totals(), scored.failures
    ([0.9, 0.0], [])
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        functions: Mapping[str, RewardFunction | str] | None = None,
        seconds: float = 10.0,
        skip_errors: bool = False,
    ) -> None:
        if workers is not None and workers < 0:
            raise ValueError(f"workers is {workers}; it must be 0 or more")
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {seconds}; it must be more than 0, and finite")
        self.counts: Counter[Fault] = Counter()
        self._functions = with_own(functions)
        self._skip_errors = skip_errors
        self._closed = False
        self._workers = None
        count = default_workers() if workers is None else workers
        if count:
            own = {**registered(), **(functions or {})}
            self._workers = Workers(count, _pickled(own), seconds)

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; :meth:`score` raises from then on. May be called again."""
        self._closed = True
        if self._workers is not None:
            self._workers.close()

    def score(
        self,
        records: Sequence[Mapping[str, Any]],
        responses: Sequence[str],
        numbers: Sequence[int] | None = None,
        *,
        places: Sequence[str] | None = None,
    ) -> Scored:
        """Score a batch.

        Parameters
        ----------
        records : sequence of mapping
            One for each response, with ``problem_type`` and ``answer``.
        responses : sequence of str
            Complete responses of the policy, N texts.
        numbers : sequence of int, optional
            The records' numbers in their source, for messages; by default 0 to N - 1.
        places : sequence of str, optional
            Places of the records, such as ``"train.jsonl, line 7"``, for messages in place of
            numbers.

        Returns
        -------
        Scored
            Components in the order of the responses, and failures.

        Raises
        ------
        ValueError
            If a problem type is unknown, or a record's answer does not fit it.
        RewardError
            If a reward function fails and ``skip_errors`` is off: the first one in the batch.
        ImportError
            If a reward needs a library that is not installed.
        RuntimeError
            If the pool is closed, or its processes do not start.
        """
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        numbers = range(len(responses)) if numbers is None else numbers
        if not len(records) == len(responses) == len(numbers):
            sizes = f"{len(records)}, {len(responses)} and {len(numbers)}"
            raise ValueError(f"records, responses and numbers have {sizes} items; must be as many")
        if places is None:
            places = [f"record {number}" for number in numbers]
        elif len(places) != len(records):
            raise ValueError(f"places has {len(places)} items; must be {len(records)}")
        jobs = [
            self._job(record, response, place)
            for record, response, place in zip(records, responses, places, strict=True)
        ]
        if self._workers is not None:
            outcomes = self._workers.run(jobs)
        else:
            outcomes = [evaluate(job, self._functions) for job in jobs]
        return self._collect(jobs, outcomes, numbers, places)

    def _job(self, record: Mapping[str, Any], response: str, place: str) -> Job:
        if not isinstance(response, str):
            kind = type(response).__name__
            raise TypeError(f"response to {place} is of type {kind}; it must be a text")
        missing = [name for name in ("problem_type", "answer") if name not in record]
        if missing:
            raise ValueError(f"{place} has no {' and no '.join(missing)}")
        try:
            problem_type = find_type(record["problem_type"], self._functions)
            truth = truth_of(record, self._functions[problem_type])
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        return Job(problem_type, truth, response)

    def _collect(
        self,
        jobs: list[Job],
        outcomes: list[Outcome],
        numbers: Sequence[int],
        places: Sequence[str],
    ) -> Scored:
        components, failures = [], []
        for row, (job, outcome, number, place) in enumerate(
            zip(jobs, outcomes, numbers, places, strict=True)
        ):
            fault, message = outcome.fault, f"{place}: {outcome.message}"
            if outcome.components is not None:
                components.append(outcome.components)
                continue
            if fault is None or fault == "truth":
                raise TruthError(message)
            if fault == "library":
                raise ImportError(message)
            if fault == "error" and not self._skip_errors:
                raise _reward_error(message, outcome.trace)
            failures.append(Failure(row, number, fault, message))
            form = float(parse_response(job.response).well_formed)
            absent = Components(math.nan, form, form)
            components.append(absent if fault == "error" else Components(0.0, 0.0, 0.0))
        self.counts.update(failure.fault for failure in failures)
        return Scored(components, failures)


def score_all(
    records: Sequence[Mapping[str, Any]], responses: Sequence[str], **options: Any
) -> Scored:
    """Score one batch in a new pool.

    Parameters
    ----------
    records : sequence of mapping
        As in :meth:`RewardPool.score`.
    responses : sequence of str
        As in :meth:`RewardPool.score`.
    **options
        Those of :class:`RewardPool`; ``workers=0`` starts no process.

    Returns
    -------
    Scored
        As in :meth:`RewardPool.score`.

    Raises
    ------
    TypeError, ValueError, RewardError
        As :class:`RewardPool` and :meth:`RewardPool.score`.

    Examples
    --------
    >>> record = {"problem_type": "vowels", "answer": "3"}
    >>> vowels = lambda answer, truth: sum(letter in "aeiou" for letter in answer) / int(truth)
    >>> scored = score_all([record], ["<answer>banana</answer>"], workers=0,
    ...                    functions={"vowels": vowels})
    >>> scored.components
    [Components(accuracy=1.0, format=0.0, structure=0.0)]
    """
    with RewardPool(**options) as pool:
        return pool.score(records, responses)


def _pickled(functions: Mapping[str, RewardFunction | str]) -> bytes:
    for problem_type, function in functions.items():
        try:
            pickle.dumps(function)
        except Exception as error:
            raise TypeError(
                f"reward function of {problem_type!r} cannot be sent to a process ({error}); "
                "define it at the top of a module, name it by its import path, or take workers=0"
            ) from error
    return pickle.dumps(functions)


def _reward_error(message: str, trace: str) -> RewardError:
    error = RewardError(message)
    if trace:
        error.add_note(f"\nIn the reward function:\n{trace}")
    return error


def default_workers() -> int:
    """Return the default number of processes of a pool: that of the cores, at most 8."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return min(len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1, 8)
