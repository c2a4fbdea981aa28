"""A run that ends early, by a signal or an error: what is saved, and the command to resume it."""

from __future__ import annotations

import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from g2rpo._shown import error_text
from g2rpo_trainer.errors import RunError, SharedError, ran_out_of_memory
from g2rpo_trainer.run_folder import RunFolder

__all__ = ["Interrupted", "StopRequest", "resumable", "resume_command"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; everything up to ``step`` is saved in ``folder``.

    Examples
    --------
    >>> print(Interrupted(25, Path("runs/g2rpo")))
    stopped after step 25, saved in runs/g2rpo
    """

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"stopped after step {step}, saved in {folder}")
        self.step = step
        self.folder = folder


class StopRequest:
    """A context in which the first Ctrl-C or SIGTERM only sets ``requested``.

    The run then finishes the step and saves. A second signal acts at once.

    Parameters
    ----------
    echo : float
        Signals within this many seconds after the first are taken for the same one.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.requested = False
        self._echo = echo
        self._first = -math.inf
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only, and only it may set handlers.
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._note) for each in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
            if not self._echo:
                self._restore()
        elif now > self._first + self._echo:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        self._previous = {}


@contextmanager
def resumable(folder: RunFolder, steps_done: Callable[[], int]) -> Iterator[None]:
    """Add to any error how far the run was, what is saved, and the command to resume.

    Nothing is saved here, because an update may be half done; the newest checkpoint stays.

    Parameters
    ----------
    folder : RunFolder
        Folder of the run.
    steps_done : callable
        Returns the number of complete steps.

    Raises
    ------
    RunError
        In place of an error for lack of memory, with the settings to change. Every other error
        is raised again with a note (:meth:`BaseException.add_note`).
    """
    try:
        yield
    except Exception as error:
        note = _resume_note(folder, steps_done())
        if isinstance(error, SharedError) or not ran_out_of_memory(error):
            error.add_note(note)
            raise
        changed = RunError(f"out of memory ({error_text(error)}); {_memory_advice(folder)}")
        changed.add_note(note)
        raise changed from error


def resume_command(path: Path) -> str:
    """Return the command that resumes the run in a folder."""
    return f"g2rpo train --resume --output-dir {shlex.quote(str(path))}"


def _resume_note(folder: RunFolder, steps: int) -> str:
    newest = folder.checkpoints.latest()
    saved = f"the checkpoint after step {newest.step}" if newest else "the start, as none was saved"
    return (
        f"the run had done {steps} of {folder.config.optimization.steps} steps; "
        f"it goes on from {saved}\ncontinue with: {resume_command(folder.path)}"
    )


def _memory_advice(folder: RunFolder) -> str:
    tokens = folder.config.optimization.micro_batch_tokens
    rollout = folder.config.rollout
    rows = rollout.batch_size or rollout.prompts_per_step * rollout.num_generations
    fewer = max(rollout.num_generations, rows // 2)
    return (
        "in the update, continue with "
        f"--set optimization.micro_batch_tokens={max(1, tokens // 2)} (now {tokens}), which "
        f"changes results by rounding only; in sampling, with --set rollout.batch_size={fewer} "
        f"(now {rows})"
    )
