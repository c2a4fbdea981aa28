"""Names in tunix's registry, usable without any class of this package.

=======================  ===========================================================================
``g2rpo-<name>``         advantage estimator: ``g2rpo.ESTIMATORS[name]`` with its default options
``g2rpo``                advantage estimator: what a ``G2RPOConfig`` describes
``g2rpo-running-scale``  advantage estimator for one group at a time, of the agentic learner
``g2rpo``                policy loss
``g2rpo``                reward manager: hands the column ``task`` to the estimators
``g2rpo-agentic``        the same for the agentic learner
=======================  ===========================================================================
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tunix.rl.function_registry import default_registry, register_advantage_estimator

import g2rpo
from g2rpo.advantages import takes_components, takes_lengths
from g2rpo.shaping import total_rewards

from .estimate import group_size, prompt_numbers
from .handover import Rollouts, handover

_CATEGORY = "advantage_estimator"


def register_estimators() -> list[str]:
    """Register every estimator of :data:`g2rpo.ESTIMATORS` with tunix, as ``g2rpo-<name>``.

    Importing :mod:`g2rpo_tunix` does it once; call it again after
    :func:`g2rpo.register_estimator`.

    Returns
    -------
    list of str
        All the names.

    Examples
    --------
    >>> "g2rpo-gaussian" in register_estimators()
    True
    """
    known = default_registry.list_functions(_CATEGORY)
    names = {f"g2rpo-{name}": name for name in g2rpo.ESTIMATORS}
    for ours, name in names.items():
        if ours not in known:
            register_advantage_estimator(ours)(partial(_by_name, name))
    return list(names)


def _by_name(name: str, rewards: Any, num_generations: int) -> Any:
    """Return advantages (N,) of rewards (N,); with tasks if the reward manager left them."""
    estimator = g2rpo.ESTIMATORS[name]
    if takes_lengths(estimator):
        raise RuntimeError(
            f"estimator 'g2rpo-{name}' needs the rollouts' lengths in tokens: set "
            f"estimator={name!r} in G2RPOConfig and train with G2RPOLearner"
        )
    rewards = np.asarray(rewards, dtype=np.float64)
    groups = group_size(len(rewards), num_generations)
    rollouts = handover.take_rollouts(len(rewards))
    tasks = None
    if rollouts is not None:
        tasks, rewards = rollouts.tasks, rollouts.rewards
        if rewards.shape[1:] == (1,) or not takes_components(estimator):
            rewards = total_rewards(rewards)
    return estimator(rewards, groups, tasks)


@register_advantage_estimator("g2rpo")
def _as_described(rewards: Any, num_generations: int) -> Any:
    """Return the advantages (N,) that a ``G2RPOConfig`` describes."""
    rollouts = _required(len(rewards))
    advantages = rollouts.manager.shaping(rollouts, handover.lengths, num_generations)
    handover.lengths = None
    handover.result = (advantages, np.asarray(rewards), rollouts.tasks)
    return advantages.policy


@register_advantage_estimator("g2rpo-running-scale")
def _by_running_scale(rewards: Any, num_generations: int) -> Any:
    """Return the advantages (N,) of one group, or of several, by the learner's running scale."""
    rollouts = _required(len(rewards))
    groups = prompt_numbers(len(rewards), num_generations)
    return rollouts.manager.scale(
        rollouts.rewards, groups, rollouts.tasks, update=rollouts.training
    )


def _required(size: int) -> Rollouts:
    rollouts = handover.take_rollouts(size)
    if rollouts is None:
        raise RuntimeError(
            "this estimator needs the reward manager of the same name (reward_manager='g2rpo', or "
            "'g2rpo-agentic' for the agentic learner); without one use 'g2rpo-gaussian'"
        )
    return rollouts


register_estimators()
