"""Worker processes of a reward pool, with time limits that count running time only.

Each process has a pipe of its own. Pools of other libraries share one pipe and guard it with locks,
which a killed process would hold for ever.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize

from .custom import with_own
from .evaluate import Job, Outcome, evaluate
from .registry import EXAMPLES, RewardFunction
from .score import is_builtin
from .time_limit import disable_time_limits

START_SECONDS = 120.0
"""Time limit for each part of a worker's start, such as the import of a library."""

# A worker may die for reasons other than the response, so each response gets a second attempt.
_ATTEMPTS = 2

# Failed starts of one worker, without any outcome in between, that are an error.
_STARTS = 3

# Seconds between two polls. A poll that is later by more than `_SUSPENDED` seconds means that this
# process was suspended (debugger, scheduler, closed lid): that time is not counted.
_POLL, _SUSPENDED = 0.05, 1.0

# Time limit for a part of a message, in seconds: a process may be stopped in the middle of one.
_MESSAGE_SECONDS = 60

_NO_START = "a process of the reward pool does not start"

# States of a worker. It sends all but the first two when they begin, and while it starts also the
# names of the libraries that it loads.
_STARTING, _TAKING = "Python and the main script", "taking a job"
_LOADING, _IDLE, _SCORING = "the reward functions", "idle", "scoring"


class WorkerStartError(RuntimeError):
    """A process of the reward pool does not start."""


class Workers:
    """Worker processes that score jobs; a process that hangs or dies is replaced.

    They load the pickled custom functions; `seconds` is the time limit for one job.
    """

    def __init__(self, count: int, functions: bytes, seconds: float) -> None:
        self._functions, self._seconds = functions, seconds
        self._workers = [_Worker() for _ in range(count)]
        # At exit it runs before multiprocessing waits for its processes; weakref.finalize may not.
        self._end = Finalize(self, _end, [self._workers], exitpriority=0)

    def close(self) -> None:
        """End all processes."""
        self._end()

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Return the outcome of every job, in order; raise WorkerStartError if none starts."""
        batch, passed = _Batch(jobs), 0.0
        try:
            while True:
                for worker in self._workers:
                    self._attend(worker, batch, passed)
                if len(batch.outcomes) == len(jobs):
                    return [batch.outcomes[row] for row in range(len(jobs))]
                passed = self._wait()
        except BaseException:
            # A failed start, or Ctrl-C, which may have cut off a message.
            for worker in self._workers:
                if worker.state != _IDLE:
                    worker.end()
            raise

    def _wait(self) -> float:
        """Wait for a message, for a moment at most; return the seconds that count."""
        start = time.monotonic()
        wait([worker.connection for worker in self._workers], _POLL)
        passed = time.monotonic() - start
        return passed if passed < _POLL + _SUSPENDED else 0.0

    def _attend(self, worker: _Worker, batch: _Batch, passed: float) -> None:
        """Read a worker's messages, replace it if it is dead or late, and give it a job."""
        if worker.state != _IDLE:
            worker.time_left -= passed
        # Asked before the messages are read: what a process sent before its death counts.
        is_alive = worker.process.is_alive()
        try:
            while worker.connection.poll():
                self._receive(worker, batch)
        except (EOFError, OSError):
            is_alive = False
        if not is_alive or worker.time_left < 0:
            self._replace(worker, batch, is_late=is_alive)
        while worker.state == _IDLE and batch.waiting:
            self._submit(worker, batch)

    def _receive(self, worker: _Worker, batch: _Batch) -> None:
        message: str | Outcome | WorkerStartError = worker.connection.recv()
        if isinstance(message, WorkerStartError):
            raise message
        if isinstance(message, Outcome):
            assert worker.row is not None
            batch.outcomes[worker.row] = message
            batch.failed_starts.clear()
            worker.row, message = None, _IDLE
        worker.state = message
        worker.time_left = self._seconds if message == _SCORING else START_SECONDS
        if message == _LOADING:
            worker.connection.send_bytes(self._functions)

    def _submit(self, worker: _Worker, batch: _Batch) -> None:
        row = batch.waiting.popleft()
        try:
            message = pickle.dumps(batch.jobs[row])
        except Exception as error:
            text = f"its answer cannot be sent to a process: {error}"
            batch.outcomes[row] = Outcome(None, "error", text)
            return
        worker.row, worker.state = row, _TAKING
        try:
            worker.connection.send_bytes(message)
        except OSError:
            self._replace(worker, batch)

    def _replace(self, worker: _Worker, batch: _Batch, *, is_late: bool = False) -> None:
        """Start a worker's process anew, and say what becomes of the job that it had."""
        row, state = worker.row, worker.state
        worker.end()
        if row is not None and is_late and state == _SCORING:
            text = f"scoring took more than {self._seconds:g} seconds"
            batch.outcomes[row] = Outcome(None, "timeout", text)
        elif row is not None:
            batch.lose(row, worker.process.exitcode)
        elif state != _IDLE:
            batch.failed_starts[worker] += 1
            if batch.failed_starts[worker] == _STARTS:
                code = worker.process.exitcode
                how = f"hung for {START_SECONDS:g} s" if is_late else f"ended (exit code {code})"
                raise WorkerStartError(
                    f"{_NO_START}: it {how} {_STARTS} times while loading {state}, for lack of "
                    "memory perhaps; a script that makes a pool needs "
                    'if __name__ == "__main__": around what it does'
                )
        worker.start()


class _Worker:
    """A process, its end of the pipe, and what it does.

    `row` is the job that it has, if any, and `time_left` are the seconds for its state.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the process."""
        # Not fork: it copies locks that threads of PyTorch and JAX hold.
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        _limit_messages(ours)
        process = context.Process(target=_work, args=[theirs])
        try:
            process.start()
        except OSError as error:
            raise WorkerStartError(f"{_NO_START}: {error}") from error
        theirs.close()
        self.process, self.connection = process, ours
        self.row: int | None = None
        self.state, self.time_left = _STARTING, START_SECONDS

    def end(self) -> None:
        """Kill the process, at once also inside of a long call into C; it has no job then."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.row, self.state = None, _IDLE


class _Batch:
    """The jobs of one call: waiting and done, deaths by job, failed starts since an outcome."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.waiting = deque(range(len(jobs)))
        self.outcomes: dict[int, Outcome] = {}
        self.failed_starts: Counter[_Worker] = Counter()
        self._deaths: Counter[int] = Counter()

    def lose(self, row: int, exit_code: int | None) -> None:
        """Queue a job again whose process died, or give it up."""
        self._deaths[row] += 1
        if self._deaths[row] < _ATTEMPTS:
            self.waiting.appendleft(row)
        else:
            text = f"scoring ended its process {_ATTEMPTS} times (exit code {exit_code})"
            self.outcomes[row] = Outcome(None, "died", text)


def _limit_messages(connection: Connection) -> None:
    """Let a message to or from a process that is stopped in the middle of it fail, not hang."""
    if os.name == "nt":
        return
    limit = struct.pack("ll", _MESSAGE_SECONDS, 0)
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setblocking(True)  # socket.setdefaulttimeout() would have undone it
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, limit)


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()


# The rest of this module runs in a worker.


def _work(connection: Connection) -> None:
    """Load the reward functions and their libraries, then score jobs until the pool ends."""
    # Ctrl-C in a terminal reaches all processes; those of a pool are ended by it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    disable_time_limits()
    _end_with_main_process()
    with suppress(EOFError, ConnectionError):  # the main process has died
        connection.send(_LOADING)
        pickled = connection.recv_bytes()
        try:
            functions = with_own(pickle.loads(pickled))
        except Exception as error:
            connection.send(WorkerStartError(f"{_NO_START}: {type(error).__name__}: {error}"))
            return
        for problem_type, example in EXAMPLES.items():
            if is_builtin(functions[problem_type]):
                connection.send(f"the library of {problem_type!r} rewards")
                evaluate(Job(problem_type, example, f"<answer>{example} </answer>"), functions)
        connection.send(_IDLE)
        while True:
            message = connection.recv_bytes()
            connection.send(_SCORING)
            connection.send(_score(message, functions))


def _end_with_main_process() -> None:
    """Let Linux end this process when the main process has died, also inside of a reward."""
    if sys.platform != "linux":
        return
    import fcntl

    main = parent_process()
    assert main is not None
    # The main process holds the other end of a pipe; when that closes the system sends SIGIO, which
    # ends a process that does not handle it, even in a call into C.
    fcntl.fcntl(main.sentinel, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(main.sentinel, fcntl.F_GETFL)
    fcntl.fcntl(main.sentinel, fcntl.F_SETFL, flags | fcntl.FASYNC)


def _score(message: bytes, functions: Mapping[str, RewardFunction]) -> Outcome:
    """Return the outcome of a pickled job."""
    try:
        job: Job = pickle.loads(message)
    except Exception as error:
        text = f"its answer cannot be sent to a process: {type(error).__name__}: {error}"
        return Outcome(None, "error", text)
    return evaluate(job, functions)
