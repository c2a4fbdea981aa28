"""The course of a value over a run in a few characters, however long the run is."""

from __future__ import annotations

import math
from collections import deque

_BARS = "▁▂▃▄▅▆▇█"
# Steps at either end over which a change is measured: one step has few responses.
_STEPS = 10


class Trend:
    """Means over equal parts of a run, at most `width`, which become longer as the run does.

    Examples
    --------
    >>> trend = Trend(width=8)
    >>> for step in range(100):
    ...     trend.add(step)
    >>> trend.line(), trend.change
    ('▁▂▄▅▇█', 90.0)
    """

    def __init__(self, width: int = 12) -> None:
        self._width = width
        self._means: list[float] = []
        self._size = 1
        self._open: list[float] = []
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_STEPS)
        self._count = 0

    def add(self, value: float) -> None:
        """Take the value of the next step; NaN and infinities are left out."""
        if not math.isfinite(value):
            return
        self._count += 1
        self._last.append(value)
        if len(self._first) < _STEPS:
            self._first.append(value)
        self._open.append(value)
        if len(self._open) == self._size:
            self._means.append(_mean(self._open))
            self._open = []
        if len(self._means) > self._width:
            # Two parts become one; an odd one out is still open.
            if len(self._means) % 2:
                self._open = [self._means.pop()] * self._size
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [_mean(pair) for pair in pairs]
            self._size *= 2

    @property
    def change(self) -> float:
        """Mean of the last ten steps less that of the first; of fewer than 20, of the halves."""
        steps = min(_STEPS, self._count // 2)
        if not steps:
            return math.nan
        return _mean(list(self._last)[-steps:]) - _mean(self._first[:steps])

    def line(self) -> str:
        """Return the parts as bars, the lowest to the highest of the run."""
        means = list(self._means)
        if 2 * len(self._open) > self._size:  # less would be one step beside the mean of many
            means.append(_mean(self._open))
        if not means:
            return ""
        low, high = min(means), max(means)
        if high == low:
            return _BARS[0] * len(means)
        scale = (len(_BARS) - 1) / (high - low)
        return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _mean(values: list[float] | tuple[float, float]) -> float:
    return sum(values) / len(values)
