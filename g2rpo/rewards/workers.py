"""Worker processes of a reward pool, by pebble, with time limits that count running time only."""

from __future__ import annotations

import pickle
import signal
import time
import weakref
from collections import Counter, deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from .custom import with_own
from .evaluate import Job, Outcome, evaluate
from .libraries import library
from .registry import EXAMPLES, RewardFunction
from .score import is_builtin
from .time_limit import disable_time_limits

if TYPE_CHECKING:
    from pebble import ProcessPool

START_SECONDS = 120.0
"""Time limit for the start of a worker, with the libraries of the built-in reward functions."""

# A worker may die for reasons other than the response, so each response gets a second attempt.
_ATTEMPTS = 2

# Seconds between two polls. A poll that is later by more than `_SUSPENDED` seconds means that this
# process was suspended (debugger, scheduler, closed lid): that time is not counted. The limits of
# pebble are not used, since they are by the wall clock and count it.
_POLL, _SUSPENDED = 0.05, 1.0


class WorkerStartError(RuntimeError):
    """A process of the reward pool does not start."""


class Workers:
    """Worker processes that score jobs; a process that hangs or dies is replaced.

    They load the pickled custom functions; `seconds` is the time limit for one job.
    """

    def __init__(self, count: int, functions: bytes, seconds: float) -> None:
        self._count, self._functions, self._seconds = count, functions, seconds
        self._open()

    def close(self) -> None:
        """End all processes."""
        self._end()

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Return the outcome of every job, in order; raise WorkerStartError if none starts."""
        batch = _Batch(jobs)
        broke_at = -1
        try:
            while len(batch.outcomes) < len(jobs):
                try:
                    self._advance(batch)
                except BrokenProcessPool:
                    # pebble stops its pool when an idle process dies. If that happens again before
                    # any job is done, processes die at their start.
                    if broke_at == len(batch.outcomes):
                        raise WorkerStartError(
                            "a process of the reward pool does not start, or is killed whenever it "
                            "does, for lack of memory perhaps; a script that makes a pool needs "
                            'if __name__ == "__main__": around what it does'
                        ) from None
                    broke_at = len(batch.outcomes)
                    self._reopen(batch)
        except BaseException:
            # Ctrl-C, or a failed start: end the running jobs.
            for future in batch.running:
                future.cancel()
            raise
        return [batch.outcomes[row] for row in range(len(jobs))]

    def _open(self) -> None:
        pebble = library("pebble", "scoring in worker processes")
        self._pool: ProcessPool = pebble.ProcessPool(
            self._count,
            initializer=_start,
            initargs=(self._functions,),
            # Not fork: it copies locks that threads of PyTorch and JAX hold.
            context=get_context("spawn"),
        )
        self._end = weakref.finalize(self, _end, self._pool)
        # This property starts the processes.
        assert self._pool.active

    def _reopen(self, batch: _Batch) -> None:
        self._end()
        batch.waiting.extendleft(task.row for task in batch.running.values())
        batch.running.clear()
        self._open()

    def _advance(self, batch: _Batch) -> None:
        """Submit jobs to idle workers, wait for a moment, and collect outcomes and timeouts."""
        while batch.waiting and len(batch.running) < self._count:
            self._submit(batch, batch.waiting[0])
            del batch.waiting[0]
        start = time.monotonic()
        wait(batch.running, _POLL, FIRST_COMPLETED)
        passed = time.monotonic() - start
        for future, task in list(batch.running.items()):
            if future.done():
                batch.collect(future)
                continue
            if passed < _POLL + _SUSPENDED:
                task.time_left -= passed
            if not task.has_started and future.running():
                task.has_started, task.time_left = True, self._seconds
            # Cancelling ends the process; it fails if the job is done by now.
            if task.time_left < 0 and future.cancel():
                del batch.running[future]
                if not task.has_started:
                    raise WorkerStartError("a process of the reward pool does not start in time")
                text = f"scoring took more than {self._seconds:g} seconds"
                batch.outcomes[task.row] = Outcome(None, "timeout", text)

    def _submit(self, batch: _Batch, row: int) -> None:
        try:
            message = pickle.dumps(batch.jobs[row])
        except Exception as error:
            text = f"its answer cannot be sent to a process: {error}"
            batch.outcomes[row] = Outcome(None, "error", text)
            return
        try:
            future = self._pool.schedule(_score, [message])
        except RuntimeError as error:
            # The pool broke between two batches.
            raise BrokenProcessPool from error
        batch.running[future] = _Task(row, START_SECONDS)


@dataclass
class _Task:
    """A submitted job, and its remaining time in seconds."""

    row: int
    time_left: float
    has_started: bool = False


class _Batch:
    """The jobs of one call: waiting, running and done, and how often each ended its process."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.waiting = deque(range(len(jobs)))
        self.running: dict[Future[Outcome | str], _Task] = {}
        self.outcomes: dict[int, Outcome] = {}
        self._deaths: Counter[int] = Counter()

    def collect(self, future: Future[Outcome | str]) -> None:
        """Store the outcome of a job, or queue it again if its process died."""
        from pebble import ProcessExpired

        try:
            outcome = future.result()
        except ProcessExpired as error:
            row = self.running.pop(future).row
            self._deaths[row] += 1
            if self._deaths[row] < _ATTEMPTS:
                self.waiting.appendleft(row)
            else:
                text = f"scoring ended its process {_ATTEMPTS} times (exit code {error.exitcode})"
                self.outcomes[row] = Outcome(None, "died", text)
            return
        row = self.running.pop(future).row
        if isinstance(outcome, str):
            raise WorkerStartError(f"a process of the reward pool does not start: {outcome}")
        self.outcomes[row] = outcome


def _end(pool: Any) -> None:
    pool.stop()
    pool.join()


# The rest of this module runs in a worker.

_functions: dict[str, RewardFunction] = {}
_start_error = ""


def _start(pickled: bytes) -> None:
    """Load the reward functions and their libraries, outside of the time limit of any response."""
    global _start_error
    # The default handler also ends a process inside of a long call into C.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    disable_time_limits()
    try:
        _functions.update(with_own(pickle.loads(pickled)))
    except Exception as error:
        _start_error = f"{type(error).__name__}: {error}"
        return
    for problem_type, example in EXAMPLES.items():
        if is_builtin(_functions[problem_type]):
            evaluate(Job(problem_type, example, f"<answer>{example} </answer>"), _functions)


def _score(message: bytes) -> Outcome | str:
    """Return the outcome of a pickled job, or the error text of the worker's start."""
    if _start_error:
        return _start_error
    try:
        job: Job = pickle.loads(message)
    except Exception as error:
        text = f"its answer cannot be sent to a process: {type(error).__name__}: {error}"
        return Outcome(None, "error", text)
    return evaluate(job, _functions)
