"""Metrics of a batch of rollouts, over all of it and by task, named as in the reference trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g2rpo import Advantages

from .shaping import Floats, Rollouts


def rollout_metrics(
    rollouts: Rollouts, advantages: Advantages, names: Sequence[str], longest: int
) -> dict[str, float]:
    """Return what is reported of N rollouts; a task that the batch lacks has no metric.

    Parameters
    ----------
    rollouts : Rollouts
        With tasks.
    advantages : Advantages
        For the length reward.
    names : sequence of str
        Names of the tasks, by their numbers.
    longest : int
        Longest response in tokens; one of that length counts as cut off, as in verl.
    """
    spread, no_signal = _of_groups(rollouts)
    lengths = rollouts.lengths.astype(np.float64)
    columns = {
        "reward": rollouts.rewards,
        "reward_std": spread,
        "frac_reward_zero_std": no_signal,
        "completions/clipped_ratio": (lengths >= longest).astype(np.float64),
    }
    components: dict[str, Floats] = dict(rollouts.components)
    if advantages.length_reward is not None:
        components["length"] = advantages.length_reward
    metrics = {"num_tokens": float(lengths.sum())}
    parts = {"": np.ones(len(lengths), dtype=bool)}
    parts |= {f"/{name}": np.asarray(rollouts.tasks) == t for t, name in enumerate(names)}
    for suffix, rows in parts.items():
        if not rows.any():
            continue
        for name, column in columns.items():
            metrics[name + suffix] = _finite_mean(column[rows])
        for name, column in components.items():
            present = column[rows][~np.isnan(column[rows])]
            if present.size:
                metrics[f"rewards/{name}/mean{suffix}"] = float(present.mean())
                metrics[f"rewards/{name}/std{suffix}"] = float(present.std())
        for statistic in ("mean", "min", "max"):
            value = float(getattr(lengths[rows], statistic)())
            metrics[f"completions/{statistic}_length{suffix}"] = value
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def _of_groups(rollouts: Rollouts) -> tuple[Floats, Floats]:
    """Return each rollout's spread of its prompt's rewards, and 1 if they are all equal."""
    order = np.argsort(rollouts.groups, kind="stable")
    starts = np.flatnonzero(np.diff(rollouts.groups[order], prepend=-1))
    spread, no_signal = np.full(len(order), np.nan), np.ones(len(order))
    for rows in np.split(order, starts[1:]):
        values = rollouts.rewards[rows]
        values = values[~np.isnan(values)]
        if values.size:
            spread[rows] = values.std() if np.isfinite(values).all() else np.nan
            # Equal rewards can have a spread of one rounding, so they are compared themselves.
            no_signal[rows] = values.min() == values.max()
    return spread, no_signal


def _finite_mean(values: Floats) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
