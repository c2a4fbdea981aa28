"""Ctrl-C and SIGTERM ask a run to stop; it finishes the step and saves first."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run stopped because it was asked to; everything up to ``step`` is saved in ``folder``."""

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"stopped after step {step}, saved in {folder}")
        self.step = step
        self.folder = folder


class StopRequest:
    """A context in which the first signal only sets ``requested``; the second acts at once.

    Parameters
    ----------
    echo : float
        Seconds after the first in which further ones are taken for the same.
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
