"""Metrics of a batch of rollouts, over all of it and by task, named as in the reference trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import g2rpo
from g2rpo.metrics import suffixed

from .shaping import Rollouts


def rollout_metrics(
    rollouts: Rollouts, advantages: g2rpo.Advantages, names: Sequence[str], longest: int
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
    components = dict(rollouts.components)
    if advantages.length_reward is not None:
        components["length"] = advantages.length_reward
    overall, by_task = g2rpo.rollout_metrics(
        rollouts.rewards,
        rollouts.groups,
        rollouts.tasks,
        lengths=rollouts.lengths,
        clipped=rollouts.lengths >= longest,
        names=names,
        components=components,
    )
    metrics = overall | suffixed(by_task)
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
