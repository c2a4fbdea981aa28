"""What a batch of rollouts reports: means over all of it, and over each task that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import g2rpo

Floats = npt.NDArray[np.float64]


def rollout_metrics(
    rewards: Floats, lengths: Any, clipped: Any, groups: Any, tasks: Any, names: Sequence[str]
) -> dict[str, tuple[float, Any]]:
    """Return metrics as tunix's cluster buffers them: name -> (value, how steps are combined).

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
        Names of the tasks. One without a rollout has no metric.

    Returns
    -------
    dict
        ``reward``, ``reward_std``, ``frac_reward_zero_std``, ``completions/mean_length`` and
        ``completions/clipped_ratio``, and each with ``/<task>``; ``num_tokens``.
    """
    by_group = rewards.reshape(groups.max() + 1, -1)
    spread = np.asarray([_std(row[~np.isnan(row)]) for row in by_group])
    columns: dict[str, Floats] = {
        "reward": rewards,
        "reward_std": spread[groups],
        "frac_reward_zero_std": np.asarray(~g2rpo.has_signal(rewards, groups), dtype=np.float64),
        "completions/mean_length": np.asarray(lengths, dtype=np.float64),
        "completions/clipped_ratio": np.asarray(clipped, dtype=np.float64),
    }
    parts = [("", np.ones(len(rewards), dtype=bool))]
    if tasks is not None:
        parts += [(f"/{name}", tasks == number) for number, name in enumerate(names)]
    metrics: dict[str, tuple[float, Any]] = {
        "num_tokens": (float(np.sum(lengths)), np.sum),
    }
    for suffix, rows in parts:
        if rows.any():
            for name, column in columns.items():
                metrics[name + suffix] = (_mean(column[rows]), np.mean)
    return metrics


def _mean(values: Floats) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _std(values: Floats) -> float:
    # An infinite reward has no deviation.
    return float(values.std()) if values.size and np.isfinite(values).all() else float("nan")
