"""A limit on the time that a block of Python may take, where the system offers one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_left_to_pool = False

# The alarm goes off again after so many seconds: Python ignores what is raised in a finaliser, and
# a block that happened to be in one would otherwise go on for ever.
_AGAIN = 0.5


class OutOfTime(BaseException):
    """The time of :func:`time_limit` is over; no ``except Exception`` on the way stops it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the block when it has run for ``seconds``.

    Parameters
    ----------
    seconds : float
        Wall-clock time, more than 0.

    Notes
    -----
    Works by an alarm signal, so only in the main thread and not on Windows; elsewhere nothing
    limits the block. One long call into C is not interrupted either. A process of its own is what
    limits those, see :class:`g2rpo.rewards.RewardPool`. An alarm that somebody else has set goes
    on.

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
    handler = signal.signal(signal.SIGALRM, _ring)
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            left = max(outer - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def leave_limits_to_pool() -> None:
    """Make :func:`time_limit` do nothing in this process, which a pool ends when time is over.

    There the pool counts what took too long, and no library goes on after an interruption at a
    place where it expects none.
    """
    global _left_to_pool
    _left_to_pool = True


def _has_alarm() -> bool:
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and hasattr(signal, "setitimer") and not _left_to_pool


def _ring(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTime
