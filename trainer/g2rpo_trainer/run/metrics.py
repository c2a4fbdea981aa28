"""What steps and evaluations report: the names are those of TRL, with the task as a suffix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo.diagnostics import equity
from g2rpo_trainer.run.evaluation import Evaluation
from g2rpo_trainer.scoring import Floats, Rewards

Labels = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]


class Outcomes(NamedTuple):
    """What is reported of N responses beside their rewards, on the host.

    Attributes
    ----------
    lengths : array (N,), integer
        Tokens.
    ended : array (N,), bool
        False where the response was cut off at its length limit.
    entropies : array (N,)
        Summed over the tokens, in nats.
    """

    lengths: Labels
    ended: Flags
    entropies: Floats


def rollout_metrics(
    rewards: Rewards,
    outcomes: Outcomes,
    groups: Labels,
    tasks: Labels,
    names: Sequence[str],
    length_reward: Floats | None = None,
    *,
    masks_truncated: bool = False,
) -> dict[str, float]:
    """Return what describes all rollouts, and those of each task.

    Parameters
    ----------
    rewards : Rewards
        N scored responses; NaN where there is no reward, which no mean counts.
    outcomes : Outcomes
        The responses' lengths and ends.
    groups, tasks : array (N,), integer
        Prompt, from 0, and number of the task.
    names : sequence of str
        Names of the tasks; one that has no rollout in this step has no metric.
    length_reward : array (N,), optional
        How well the lengths fit; NaN where no length is rewarded.
    masks_truncated : bool
        Whether responses that were cut off are left out of the loss: their share of all tokens is
        reported.

    Returns
    -------
    dict of str to float
    """
    components = {name: column for name, column in rewards.columns().items() if name != "reward"}
    if length_reward is not None:
        components["length"] = length_reward
    spread, no_signal = _of_groups(rewards.reward, groups)
    columns = {
        "reward": rewards.reward,
        "reward_std": spread,
        "frac_reward_zero_std": no_signal,
        "completions/clipped_ratio": ~outcomes.ended,
    }
    lengths = outcomes.lengths
    metrics = {}
    for suffix, rows in _parts(tasks, names):
        for name, column in columns.items():
            metrics[name + suffix] = _mean(column[rows])
        for name, column in components.items():
            metrics |= _spread_of(f"rewards/{name}", suffix, column[rows])
        for name in ("mean", "min", "max"):
            statistic = float(getattr(lengths[rows], name)())
            metrics[f"completions/{name}_length{suffix}"] = statistic
        if masks_truncated:
            masked = lengths[rows & ~outcomes.ended].sum() / lengths[rows].sum()
            metrics["completions/masked_ratio" + suffix] = float(masked)
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


def equity_metrics(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of gradient equity from the norm of each task's own gradient.

    Examples
    --------
    >>> equity_metrics({"ocr": 1.0, "maths": 2.0})
    {'equity/grad_norm/ocr': 1.0, 'equity/grad_norm/maths': 2.0, 'equity/ratio': 2.0}
    """
    metrics = {f"equity/grad_norm/{task}": norm for task, norm in norms.items()}
    return metrics | {"equity/ratio": equity(norms)}


def _of_groups(rewards: Floats, groups: Labels) -> tuple[Floats, Floats]:
    """Return, for each rollout, the spread of its prompt's rewards, and 1 if they are all equal."""
    spread, no_signal = np.full_like(rewards, np.nan), np.ones_like(rewards)
    for group in np.unique(groups):
        rows = groups == group
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


def _mean(values: npt.NDArray[Any]) -> float:
    values = _present(values.astype(np.float64))
    return float(values.mean()) if len(values) else math.nan


def _present(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    present: npt.NDArray[Any] = values[~np.isnan(values)]
    return present


def _parts(tasks: Labels, names: Sequence[str]) -> Iterator[tuple[str, Flags]]:
    yield "", np.ones_like(tasks, dtype=bool)
    for number, name in enumerate(names):
        rows = tasks == number
        if rows.any():
            yield f"/{name}", rows
