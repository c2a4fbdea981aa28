"""Worker processes of a reward pool: pebble's, with time limits that count only running time."""

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

from .clock import leave_limits_to_pool
from .custom import with_own
from .evaluate import Job, Outcome, evaluate
from .libraries import library
from .registry import EXAMPLES, RewardFunction
from .score import is_builtin

if TYPE_CHECKING:
    from pebble import ProcessPool

START_SECONDS = 120.0
"""Most time for a worker to start, with the libraries of the built-in reward functions."""

# A worker may die for reasons of the machine, so a response gets a second one before it is blamed.
_ATTEMPTS = 2

# Seconds between two looks at the clock, and how late a look shows that everything stood still (a
# debugger, a scheduler that takes the machine away, a closed lid): that time is nobody's. pebble's
# own limits are by the wall clock and count it, so they are not used.
_LOOK, _FROZEN = 0.05, 1.0


class WorkerStartError(RuntimeError):
    """A process of the reward pool does not start."""


class Crew:
    """Worker processes that score jobs; one that hangs or dies is replaced.

    Parameters
    ----------
    count : int
        Number of processes, 1 or more.
    functions : bytes
        The user's own functions, pickled: problem type -> function or import path.
    seconds : float
        Most time that one job may take.
    """

    def __init__(self, count: int, functions: bytes, seconds: float) -> None:
        self._count, self._functions, self._seconds = count, functions, seconds
        self._open()

    def close(self) -> None:
        """End all processes."""
        self._end()

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Return the outcome of every job, in order.

        Raises
        ------
        WorkerStartError
            If a process does not start.
        """
        batch = _Batch(jobs)
        broke_at = -1
        try:
            while len(batch.outcomes) < len(jobs):
                try:
                    self._advance(batch)
                except BrokenProcessPool:
                    # pebble gives up when an idle process dies. If that happens again before
                    # anything is scored, processes die when they start.
                    if broke_at == len(batch.outcomes):
                        raise WorkerStartError(
                            "a process of the reward pool does not start; a script that makes a "
                            'pool needs if __name__ == "__main__": around what it does'
                        ) from None
                    broke_at = len(batch.outcomes)
                    self._reopen(batch)
        except BaseException:
            # Ctrl-C, or a start that failed: end what is under way.
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
            # Never forked: a fork copies the locks of PyTorch's and JAX's threads as they are.
            context=get_context("spawn"),
        )
        self._end = weakref.finalize(self, _end, self._pool)
        # Asking starts the processes.
        assert self._pool.active

    def _reopen(self, batch: _Batch) -> None:
        self._end()
        batch.waiting.extendleft(task.row for task in batch.running.values())
        batch.running.clear()
        self._open()

    def _advance(self, batch: _Batch) -> None:
        """Hand out jobs, wait a moment for the workers, and collect what they have done."""
        while batch.waiting and len(batch.running) < self._count:
            self._hand_out(batch, batch.waiting[0])
            del batch.waiting[0]
        asked = time.monotonic()
        wait(batch.running, _LOOK, FIRST_COMPLETED)
        passed = time.monotonic() - asked
        for future, task in list(batch.running.items()):
            if future.done():
                batch.collect(future)
                continue
            if passed < _LOOK + _FROZEN:
                task.time_left -= passed
            if not task.has_started and future.running():
                task.has_started, task.time_left = True, self._seconds
            # Cancelling ends the process; it fails if the outcome has come meanwhile.
            if task.time_left < 0 and future.cancel():
                del batch.running[future]
                if not task.has_started:
                    raise WorkerStartError("a process of the reward pool does not start in time")
                text = f"scoring took more than {self._seconds:g} seconds"
                batch.outcomes[task.row] = Outcome(None, "timeout", text)

    def _hand_out(self, batch: _Batch, row: int) -> None:
        try:
            message = pickle.dumps(batch.jobs[row])
        except Exception as error:
            text = f"its answer cannot be sent to a process: {error}"
            batch.outcomes[row] = Outcome(None, "error", text)
            return
        try:
            future = self._pool.schedule(_score, [message])
        except RuntimeError as error:
            # It broke between two batches.
            raise BrokenProcessPool from error
        batch.running[future] = _Task(row, START_SECONDS)


@dataclass
class _Task:
    """A job that a worker has, or is about to get, and the time that it has left in seconds."""

    row: int
    time_left: float
    has_started: bool = False


class _Batch:
    """The jobs of one call: which wait or run, what came out, how often each cost a process."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.waiting = deque(range(len(jobs)))
        self.running: dict[Future[Outcome | str], _Task] = {}
        self.outcomes: dict[int, Outcome] = {}
        self._deaths: Counter[int] = Counter()

    def collect(self, future: Future[Outcome | str]) -> None:
        """Take the outcome of a job, or give it to another process if its own died."""
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


# What follows runs in a worker.

_functions: dict[str, RewardFunction] = {}
_start_error = ""


def _start(pickled: bytes) -> None:
    """Load the reward functions and the libraries of the built-in ones: no response's time."""
    global _start_error
    # The default, which also ends a process inside of one long call into C.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_limits_to_pool()
    try:
        _functions.update(with_own(pickle.loads(pickled)))
    except Exception as error:
        _start_error = f"{type(error).__name__}: {error}"
        return
    for problem_type, example in EXAMPLES.items():
        if is_builtin(_functions[problem_type]):
            evaluate(Job(problem_type, example, f"<answer>{example} </answer>"), _functions)


def _score(message: bytes) -> Outcome | str:
    """Return the outcome of a pickled job, or why this process could not start."""
    if _start_error:
        return _start_error
    try:
        job: Job = pickle.loads(message)
    except Exception as error:
        text = f"its answer cannot be sent to a process: {type(error).__name__}: {error}"
        return Outcome(None, "error", text)
    return evaluate(job, _functions)
