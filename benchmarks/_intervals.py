"""Means with 95 % intervals, by bootstrap over seeds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A mean over seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.mean == self.low == self.high == 0:
            return "0"
        text = f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return f"**{text}**" if self.excludes_zero else text

    @property
    def excludes_zero(self) -> bool:
        """Return whether all of the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def interval(values: npt.NDArray[Any], draws: int = 4000) -> Interval:
    """Return the mean of values (S,), of S seeds, and its percentile interval.

    The seeds are drawn by a generator that is always the same.

    Examples
    --------
    >>> interval(np.asarray([1.0, 1.0, 1.0]))
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))
