"""What a step and an evaluation report, under the names of TRL with the task as a suffix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .evaluation import Evaluation
from .rollout import Completions
from .scoring import Floats, Rewards


def rollout_metrics(
    rewards: Rewards,
    completions: Completions,
    tasks: np.ndarray,
    names: Sequence[str],
    length_reward: Floats | None = None,
) -> dict[str, float]:
    """Return what describes all rollouts, and those of each task.

    Parameters
    ----------
    rewards : Rewards
        N = P · G scored responses; NaN where there is no reward, which no mean counts.
    completions : Completions
        The responses.
    tasks : array (N,), int32
        Number of each response's task.
    names : sequence of str
        Names of the tasks; one that has no rollout in this step has no metric.
    length_reward : array (N,), optional
        How well the lengths fit; NaN where no length is rewarded.

    Returns
    -------
    dict of str to float
    """
    components = {name: column for name, column in rewards._asdict().items() if name != "reward"}
    if length_reward is not None:
        components["length"] = length_reward
    spread, no_signal = _of_groups(rewards.reward, completions.ended.shape[1])
    columns = {
        "reward": rewards.reward,
        "reward_std": spread,
        "frac_reward_zero_std": no_signal,
        "completions/clipped_ratio": ~np.asarray(completions.ended).reshape(-1),
    }
    lengths = completions.lengths()
    token_entropy = np.asarray(completions.entropies, np.float64).sum(-1).reshape(-1)
    metrics = {}
    for suffix, rows in _parts(tasks, names):
        for name, column in columns.items():
            metrics[name + suffix] = _mean(column[rows])
        for name, column in components.items():
            metrics |= _spread_of(f"rewards/{name}", suffix, column[rows])
        for name in ("mean", "min", "max"):
            statistic = float(getattr(lengths[rows], name)())
            metrics[f"completions/{name}_length{suffix}"] = statistic
        metrics["entropy" + suffix] = float(token_entropy[rows].sum() / lengths[rows].sum())
    metrics["num_tokens"] = float(lengths.sum())
    return metrics


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of an evaluation during the run; tasks without items have none.

    Examples
    --------
    >>> evaluation_metrics(Evaluation({"box": 0.5, "mean": 0.5}, {"box": 12.0}))
    {'eval_reward/box': 0.5, 'eval_reward': 0.5, 'eval_completions/mean_length/box': 12.0}
    """
    metrics = {}
    for task, reward in evaluation.reward.items():
        metrics["eval_reward" if task == "mean" else f"eval_reward/{task}"] = reward
    for task, length in evaluation.length.items():
        metrics[f"eval_completions/mean_length/{task}"] = length
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _of_groups(rewards: Floats, group: int) -> tuple[Floats, Floats]:
    """Return, for each rollout, the spread of its prompt's rewards, and 1 if they are all equal."""
    spread, no_signal = np.full_like(rewards, np.nan), np.ones_like(rewards)
    for start in range(0, len(rewards), group):
        rows = slice(start, start + group)
        values = _present(rewards[rows])
        if len(values):
            spread[rows] = values.std()
            # Equal rewards can have a spread of one rounding, so they are compared themselves.
            no_signal[rows] = (values == values[0]).all()
    return spread, no_signal


def _spread_of(name: str, suffix: str, values: Floats) -> dict[str, float]:
    values = _present(values)
    if not len(values):
        return {}
    return {
        f"{name}/mean{suffix}": float(values.mean()),
        f"{name}/std{suffix}": float(values.std()),
    }


def _mean(values: np.ndarray) -> float:
    values = _present(values.astype(np.float64))
    return float(values.mean()) if len(values) else math.nan


def _present(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _parts(tasks: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    yield "", np.ones_like(tasks, dtype=bool)
    for number, name in enumerate(names):
        rows = tasks == number
        if rows.any():
            yield f"/{name}", rows
