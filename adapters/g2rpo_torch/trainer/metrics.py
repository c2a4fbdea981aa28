"""What a step and an evaluation report, under the names of TRL with the task as a suffix."""

from __future__ import annotations

import math

import torch

from .evaluation import Evaluation
from .rollout import Outcomes
from .scoring import Rewards


def rollout_metrics(
    rewards: Rewards,
    outcomes: Outcomes,
    groups: torch.Tensor,
    tasks: torch.Tensor,
    names: list[str],
    length_reward: torch.Tensor | None = None,
) -> dict[str, float]:
    """Return what describes all rollouts, and those of each task.

    Parameters
    ----------
    rewards : Rewards
        N scored responses; NaN where there is no reward, which no mean counts.
    outcomes : Outcomes
        The responses' lengths and ends.
    groups, tasks : Tensor (N,), int64
        Prompt, from 0, and number of the task.
    names : list of str
        Names of the tasks; one that has no rollout in this step has no metric.
    length_reward : Tensor (N,), optional
        How well the lengths fit; NaN where no length is rewarded.

    Returns
    -------
    dict of str to float
    """
    components = {name: column for name, column in rewards._asdict().items() if name != "reward"}
    if length_reward is not None:
        components["length"] = length_reward
    spread, no_signal = _of_groups(rewards.reward, groups)
    columns = {
        "reward": rewards.reward,
        "reward_std": spread,
        "frac_reward_zero_std": no_signal,
        "completions/clipped_ratio": (~outcomes.ended).float(),
    }
    lengths = outcomes.lengths.float()
    metrics = {}
    for suffix, rows in _parts(tasks, names):
        for name, column in columns.items():
            metrics[name + suffix] = float(column[rows].nanmean())
        for name, column in components.items():
            metrics |= _spread_of(f"rewards/{name}", suffix, column[rows])
        for name in ("mean", "min", "max"):
            statistic = float(getattr(lengths[rows], name)())
            metrics[f"completions/{name}_length{suffix}"] = statistic
        metrics["entropy" + suffix] = float(outcomes.entropies[rows].sum() / lengths[rows].sum())
    metrics["num_tokens"] = float(lengths.sum())
    return metrics


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of an evaluation during the run; tasks without items have none.

    Examples
    --------
    >>> evaluation_metrics(
    ...     Evaluation({"ocr": 0.5}, {"ocr": 12.0}, {"ocr": {"low": 0.4, "high": 0.6}})
    ... )
    {'eval_reward/ocr': 0.5, 'eval_reward_low/ocr': 0.4, 'eval_reward_high/ocr': 0.6,
    'eval_completions/mean_length/ocr': 12.0}
    """
    metrics = {}
    for task, reward in evaluation.reward.items():
        suffix = "" if task == "mean" else f"/{task}"
        metrics["eval_reward" + suffix] = reward
        for end in ("low", "high"):
            metrics[f"eval_reward_{end}{suffix}"] = evaluation.detail[task][end]
    for task, length in evaluation.length.items():
        metrics[f"eval_completions/mean_length/{task}"] = length
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _of_groups(rewards: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each rollout, the spread of its prompt's rewards, and 1 if they are all equal."""
    spread, no_signal = torch.full_like(rewards, torch.nan), torch.ones_like(rewards)
    for group in groups.unique():
        rows = groups == group
        values = rewards[rows]
        values = values[~values.isnan()]
        if len(values):
            spread[rows] = values.std(correction=0)
            # Equal rewards can have a spread of one rounding, so they are compared themselves.
            no_signal[rows] = float((values == values[0]).all())
    return spread, no_signal


def _spread_of(name: str, suffix: str, values: torch.Tensor) -> dict[str, float]:
    values = values[~values.isnan()]
    if not len(values):
        return {}
    return {
        f"{name}/mean{suffix}": float(values.mean()),
        f"{name}/std{suffix}": float(values.std(correction=0)),
    }


def _parts(tasks: torch.Tensor, names: list[str]) -> list[tuple[str, torch.Tensor]]:
    parts = [("", torch.ones_like(tasks, dtype=torch.bool))]
    parts += [(f"/{name}", tasks == number) for number, name in enumerate(names)]
    return [(suffix, rows) for suffix, rows in parts if rows.any()]
