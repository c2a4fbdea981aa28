"""The processes of a reward pool: who works on what, and what happens to those that fail."""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from multiprocessing import get_context
from multiprocessing.connection import wait

from .evaluate import Job, Outcome
from .worker import Worker, WorkerStartError

# A process may die for reasons of the machine, so a response gets a second one before it is blamed.
_ATTEMPTS = 2

# Who wakes up so many seconds late was stopped, and the processes with it (a debugger, a scheduler
# that takes the machine away, a closed lid): that time is not theirs.
_FROZEN = 1.0

# Seconds between two looks at the clock, so that a standstill is measured to that.
_LOOK = 0.5


class Crew:
    """Processes that score jobs; one that hangs or dies is replaced.

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
        # Spawned, never forked: a fork copies the locks of PyTorch's and JAX's threads as they are.
        self._context = get_context("spawn")
        self._functions, self._seconds = functions, seconds
        self._workers = [self._start() for _ in range(count)]

    def close(self) -> None:
        """End all processes."""
        while self._workers:
            self._workers.pop().stop()

    def run(self, jobs: list[Job]) -> list[Outcome]:
        """Return the outcome of every job, in order.

        Raises
        ------
        WorkerStartError
            If a process does not start.
        """
        batch = _Batch(jobs)
        try:
            while not batch.done:
                self._hand_out(batch)
                if not batch.done:
                    self._listen(batch)
        except BaseException:
            # Ctrl-C, or a start that failed: what is under way belongs to no batch any more.
            for place, worker in enumerate(self._workers):
                if worker.row is not None:
                    self._replace(place)
            raise
        return [batch.outcomes[row] for row in range(len(jobs))]

    def _hand_out(self, batch: _Batch) -> None:
        for place, worker in enumerate(self._workers):
            while worker.ready and worker.row is None and batch.waiting:
                row = batch.waiting.popleft()
                try:
                    message = pickle.dumps(batch.jobs[row])
                except Exception as error:
                    text = f"its answer cannot be sent to a process: {error}"
                    batch.outcomes[row] = Outcome(None, "error", text)
                    continue
                try:
                    worker.give(row, message)
                except OSError:
                    batch.died(row, self._replace(place, grace=1.0))

    def _listen(self, batch: _Batch) -> None:
        busy = {
            worker.connection: place
            for place, worker in enumerate(self._workers)
            if worker.row is not None or not worker.ready
        }
        deadline = min(self._workers[place].deadline for place in busy.values())
        asked = time.monotonic()
        patience = min(max(deadline - asked, 0), _LOOK)
        heard = wait(list(busy), timeout=patience)
        late = time.monotonic() - asked - patience
        if late > _FROZEN:
            for place in busy.values():
                self._workers[place].deadline += late
        for connection, place in busy.items():
            if connection in heard:
                self._hear(place, batch)
            elif time.monotonic() > self._workers[place].deadline:
                self._time_out(place, batch)

    def _hear(self, place: int, batch: _Batch) -> None:
        worker = self._workers[place]
        row = worker.row
        try:
            outcome = worker.hear()
        except (EOFError, OSError):
            ending = self._replace(place, grace=1.0)
            if row is None:
                raise WorkerStartError(
                    f"a process of the reward pool does not start ({ending}); a script that makes "
                    'a pool needs if __name__ == "__main__": around what it does'
                ) from None
            batch.died(row, ending)
            return
        if outcome is not None and row is not None:
            batch.outcomes[row] = outcome

    def _time_out(self, place: int, batch: _Batch) -> None:
        row = self._workers[place].row
        self._replace(place)
        if row is None:
            raise WorkerStartError("a process of the reward pool does not start in time")
        text = f"scoring took more than {self._seconds:g} seconds"
        batch.outcomes[row] = Outcome(None, "timeout", text)

    def _replace(self, place: int, grace: float = 0.0) -> str:
        ending = self._workers[place].end(grace)
        self._workers[place] = self._start()
        return ending

    def _start(self) -> Worker:
        return Worker(self._context, self._functions, self._seconds)


class _Batch:
    """The jobs of one call: which wait, what came out, how often each cost a process."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.waiting = deque(range(len(jobs)))
        self.outcomes: dict[int, Outcome] = {}
        self._deaths: Counter[int] = Counter()

    @property
    def done(self) -> bool:
        return len(self.outcomes) == len(self.jobs)

    def died(self, row: int, ending: str) -> None:
        self._deaths[row] += 1
        if self._deaths[row] < _ATTEMPTS:
            self.waiting.appendleft(row)
        else:
            text = f"scoring ended its process {_ATTEMPTS} times ({ending})"
            self.outcomes[row] = Outcome(None, "died", text)
