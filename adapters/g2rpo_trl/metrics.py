"""Metrics of rollouts and updates by task, under the names of the reference trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from g2rpo.shaping import total_rewards

from .shaping import Floats, Rollouts

#: In front of what :func:`g2rpo.g2rpo_loss` reports by task, (num_tasks,).
BY_TASK = "tasks/"


class UpdateMetrics:
    """Adds up what the micro-batches of an optimizer step report, on the device.

    Of names that end in ``/max`` it takes the largest.
    """

    def __init__(self) -> None:
        self._values: dict[str, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take the values of a micro-batch, each its share of the whole."""
        for name, value in values.items():
            value, known = value.detach().reshape(-1), self._values.get(name)
            if known is not None:
                value = torch.maximum(known, value) if name.endswith("/max") else known + value
            self._values[name] = value

    def reduced(self, gather: Callable[[Any], Any]) -> dict[str, Floats]:
        """Return the values over all processes, by task (num_tasks,) or (1,)."""
        lengths = [len(value) for value in self._values.values()]
        row = torch.cat(list(self._values.values())).reshape(1, -1)
        columns = np.split(gather(row).cpu().numpy(), np.cumsum(lengths)[:-1], axis=1)
        return {
            name: column.max(axis=0) if name.endswith("/max") else column.sum(axis=0)
            for name, column in zip(self._values, columns, strict=True)
        }


def named(
    values: Mapping[str, Floats], present: npt.NDArray[np.bool_], tasks: Sequence[str]
) -> dict[str, float]:
    """Return reduced values under the names of the metrics; by task only where it is present."""
    found: dict[str, float] = {}
    for name, numbers in values.items():
        if name.startswith(BY_TASK):
            name = name[len(BY_TASK) :]
            found |= {f"{name}/{t}": float(numbers[k]) for k, t in enumerate(tasks) if present[k]}
        else:
            found[name] = float(numbers[0])
    return found


def rollout_metrics(
    rollouts: Rollouts,
    length_reward: Floats | None,
    tasks: Sequence[str],
    reward_names: Sequence[str],
    reward_weights: Sequence[float],
) -> dict[str, float]:
    """Return what TRL does not report: metrics by task, and those of the length reward.

    A name without a task is added only where TRL's own value is another one:
    ``frac_reward_zero_std``, which TRL takes from its own advantages.
    """
    total = total_rewards(rollouts.rewards, reward_weights)
    by_prompt = total.reshape(-1, rollouts.num_generations)
    # Equal rewards can have a deviation of one rounding, so they are compared themselves.
    is_equal = [np.unique(row[~np.isnan(row)]).size < 2 for row in by_prompt]
    no_signal = np.repeat(np.asarray(is_equal, float), rollouts.num_generations)
    spread = np.repeat([_std(row) for row in by_prompt], rollouts.num_generations)
    lengths, clipped = rollouts.lengths.astype(float), rollouts.clipped.astype(float)
    components = dict(zip(reward_names, rollouts.rewards.T, strict=True))
    metrics = {"frac_reward_zero_std": float(no_signal.mean())}
    if length_reward is not None:
        components["length"] = length_reward
        metrics |= _mean_and_std("length", length_reward, "")
    for number, task in enumerate(tasks):
        rows = rollouts.tasks == number
        if not rows.any():
            continue
        means = {
            "reward": total,
            "reward_std": spread,
            "frac_reward_zero_std": no_signal,
            "completions/mean_length": lengths,
            "completions/clipped_ratio": clipped,
        }
        metrics |= {f"{name}/{task}": _mean(column[rows]) for name, column in means.items()}
        metrics[f"completions/min_length/{task}"] = float(lengths[rows].min())
        metrics[f"completions/max_length/{task}"] = float(lengths[rows].max())
        for name, column in components.items():
            metrics |= _mean_and_std(name, column[rows], f"/{task}")
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def _mean_and_std(name: str, values: Floats, suffix: str) -> dict[str, float]:
    return {
        f"rewards/{name}/mean{suffix}": _mean(values),
        f"rewards/{name}/std{suffix}": _std(values),
    }


def _mean(values: Any) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _std(values: Any) -> float:
    values = values[~np.isnan(values)]
    # An infinite reward has no deviation.
    return float(values.std()) if values.size and np.isfinite(values).all() else float("nan")
