"""What a step reports about its rollouts, under the names of TRL with the task as a suffix."""

from __future__ import annotations

import torch

from .rollout import Completions
from .scoring import Rewards


def rollout_metrics(
    rewards: Rewards,
    completions: Completions,
    groups: torch.Tensor,
    tasks: torch.Tensor,
    names: list[str],
) -> dict[str, float]:
    """Return means over all rollouts and over those of each task.

    Parameters
    ----------
    rewards : Rewards
        N scored responses.
    completions : Completions
        The responses.
    groups, tasks : Tensor (N,), int64
        Prompt, from 0, and number of the task.
    names : list of str
        Names of the tasks; one that has no rollout in this step has no metric.

    Returns
    -------
    dict of str to float
    """
    by_group = [rewards.reward[groups == group] for group in range(int(groups.max()) + 1)]
    spread = torch.stack([values.std(correction=0) for values in by_group])
    # Equal rewards can have a standard deviation of one rounding, so they are compared themselves.
    no_signal = torch.stack([(values == values[0]).all() for values in by_group])
    columns = {
        "reward": rewards.reward,
        "accuracy": rewards.accuracy,
        "format": rewards.format,
        "reward_std": spread[groups],
        "frac_reward_zero_std": no_signal[groups].float(),
        "completions/mean_length": completions.lengths.float().cpu(),
        "completions/clipped_ratio": (~completions.ended).float().cpu(),
    }
    token_entropy = completions.entropies.sum(-1).cpu()
    metrics = {}
    for suffix, rows in _parts(tasks, names):
        for name, column in columns.items():
            metrics[name + suffix] = float(column[rows].mean())
        tokens = columns["completions/mean_length"][rows].sum()
        metrics["entropy" + suffix] = float(token_entropy[rows].sum() / tokens)
    metrics["num_tokens"] = float(columns["completions/mean_length"].sum())
    return metrics


def _parts(tasks: torch.Tensor, names: list[str]) -> list[tuple[str, torch.Tensor]]:
    parts = [("", torch.ones_like(tasks, dtype=torch.bool))]
    parts += [(f"/{name}", tasks == number) for number, name in enumerate(names)]
    return [(suffix, rows) for suffix, rows in parts if rows.any()]
