"""A time limit for a block of Python code, on systems with alarm signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_disabled = False

# Seconds between repeated alarms: Python ignores an exception that is raised in a finaliser, so a
# single alarm could be lost.
_REPEAT = 0.5


class OutOfTime(BaseException):
    """The time limit of :func:`time_limit` is exceeded. ``except Exception`` does not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block when it has run for ``seconds`` of wall-clock time.

    The limit is an alarm signal: there is none outside of the main thread and on Windows, and a
    long call into C is not interrupted. A worker process has no such exceptions, see
    :class:`g2rpo.rewards.RewardPool`. An alarm that was already set is restored.

    Examples
    --------
    >>> try:
    ...     with time_limit(0.01):
    ...         while True:
    ...             pass
    ... except OutOfTime:
    ...     print("stopped")
    stopped
    """
    if not _has_alarm():
        yield
        return
    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, _raise_out_of_time)
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            left = max(outer - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def disable_time_limits() -> None:
    """Turn :func:`time_limit` off in this worker process: its pool ends it after the time limit.

    The pool then counts every timeout, and no library has to survive an exception at an arbitrary
    line.
    """
    global _disabled
    _disabled = True


def _has_alarm() -> bool:
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and hasattr(signal, "setitimer") and not _disabled


def _raise_out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTime
