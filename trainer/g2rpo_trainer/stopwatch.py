"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds of the parts of a step, each of which may come several times.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.part("rollout"):
    ...     pass
    >>> list(watch.metrics())
    ['time/rollout', 'step_time']
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside the context for a part."""
        started = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        """Return the seconds of every part, and of all since the beginning."""
        parts = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        return {**parts, "step_time": time.monotonic() - self._started}
