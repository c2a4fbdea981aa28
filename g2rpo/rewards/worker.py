"""What a process of the reward pool does, and the pool's handle on it."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from .clock import leave_limits_to_pool
from .custom import with_own
from .evaluate import Job, Outcome, evaluate
from .registry import EXAMPLES, RewardFunction
from .score import is_builtin

START_SECONDS = 120.0
"""Most time for a process to start, and for a problem type's libraries to load in it."""

READY, STARTED = "ready", "started"


class WorkerStartError(RuntimeError):
    """A process of the reward pool does not start."""


class Worker:
    """A process that scores one response at a time, over a pipe that no other process shares.

    Attributes
    ----------
    row : int or None
        The response that it works on.
    ready : bool
        Whether it has started.
    deadline : float
        When it must be heard of next, by the monotonic clock [s].
    """

    def __init__(self, context: SpawnContext, functions: bytes, seconds: float) -> None:
        self._seconds = seconds
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, functions), name="g2rpo-rewards", daemon=True
        )
        self._process.start()
        theirs.close()
        self.row: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, row: int, job: bytes) -> None:
        """Hand over a pickled job; OSError if the process is gone."""
        self.row = row
        self.deadline = time.monotonic() + START_SECONDS
        self.connection.send_bytes(job)

    def hear(self) -> Outcome | None:
        """Take the next message; an outcome if it is one, EOFError or OSError if the process died.

        Raises
        ------
        WorkerStartError
            If the process could not load the reward functions.
        """
        message = self.connection.recv()
        if isinstance(message, Outcome):
            self.row = None
            return message
        if message == READY:
            self.ready = True
        elif message == STARTED:
            self.deadline = time.monotonic() + self._seconds
        else:
            raise WorkerStartError(f"a process of the reward pool does not start: {message}")
        return None

    def stop(self) -> None:
        """Let the process go if it has nothing to do, else end it."""
        if self.ready and self.row is None:
            self.connection.close()
            self.end(grace=1.0)
        else:
            self.end()

    def end(self, grace: float = 0.0) -> str:
        """End the process unless it ends by itself in ``grace`` seconds; return how it ended."""
        self._process.join(grace)
        self._process.kill()
        self._process.join()
        self.connection.close()
        return f"exit code {self._process.exitcode}"


def serve(connection: Connection, functions: bytes) -> None:
    """Score responses until the pool closes its end of the pipe: the process' own loop."""
    # Ctrl-C goes to all processes of the terminal; the pool decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_limits_to_pool()
    # The pool's end is closed, or gone with the run: there is nobody left to tell.
    with suppress(EOFError, OSError):
        _serve(connection, functions)


def _serve(connection: Connection, functions: bytes) -> None:
    try:
        known = with_own(pickle.loads(functions))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(READY)
    warm: set[str] = set()
    while True:
        message = connection.recv_bytes()
        connection.send(_score(connection, message, known, warm))


def _score(
    connection: Connection, message: bytes, functions: Mapping[str, RewardFunction], warm: set[str]
) -> Outcome:
    try:
        job: Job = pickle.loads(message)
    except Exception as error:
        text = f"its answer cannot be sent to a process: {type(error).__name__}: {error}"
        return Outcome(None, "error", text)
    if job.problem_type not in warm:
        warm.add(job.problem_type)
        _warm_up(job.problem_type, functions)
    connection.send(STARTED)
    return evaluate(job, functions)


def _warm_up(problem_type: str, functions: Mapping[str, RewardFunction]) -> None:
    # Loading a library is not the response's time.
    if problem_type in EXAMPLES and is_builtin(functions[problem_type]):
        example: Any = EXAMPLES[problem_type]
        evaluate(Job(problem_type, example, f"<answer>{example} </answer>"), functions)
