"""Metrics of a batch of rollouts in the form in which tunix's cluster buffers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import g2rpo

_COMBINED = {
    "num_tokens": np.sum,
    "completions/min_length": np.min,
    "completions/max_length": np.max,
}


def rollout_metrics(
    rewards: npt.NDArray[np.float64],
    lengths: Any,
    clipped: Any,
    groups: Any,
    tasks: Any,
    names: Sequence[str],
) -> dict[str, tuple[float, Any]]:
    """Return :func:`g2rpo.rollout_metrics` as name -> (value, function that combines steps).

    Parameters
    ----------
    rewards : numpy.ndarray
        (N,), in reward units; NaN is absent.
    lengths : array
        (N,), in tokens.
    clipped : array of bool
        (N,): whether the response was cut off at the longest length.
    groups, tasks : array of int
        (N,): prompt, from 0, and task; ``tasks`` is None for a single task.
    names : sequence of str
        Names of the tasks; metrics by task end in ``/<task>``.
    """
    overall, by_task = g2rpo.rollout_metrics(
        rewards, groups, tasks, lengths=lengths, clipped=clipped, names=names
    )
    found = {name: (value, _COMBINED.get(name, np.mean)) for name, value in overall.items()}
    for task, own in by_task.items():
        found |= {f"{n}/{task}": (value, _COMBINED.get(n, np.mean)) for n, value in own.items()}
    return found
