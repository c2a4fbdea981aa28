"""From rewards and lengths to the advantages of the two surrogate terms."""

from __future__ import annotations

from typing import NamedTuple

import torch

import g2rpo
from g2rpo.run.description import RunDescription

from .scoring import Rewards

# A response is right, for the length gate, from this accuracy on: exact for binary rewards, a good
# half for graded ones.
RIGHT_FROM = 0.5


class Advantages(NamedTuple):
    """What each rollout's tokens are pushed by, (N,) each.

    Attributes
    ----------
    policy : Tensor
        Advantages of the rewards.
    length : Tensor or None
        Advantages of the length rewards; None if length is no term of its own.
    length_reward : Tensor or None
        The length rewards themselves, NaN where they do not apply; None if length is off.
    """

    policy: torch.Tensor
    length: torch.Tensor | None
    length_reward: torch.Tensor | None


def shape_advantages(
    description: RunDescription,
    rewards: Rewards,
    lengths: torch.Tensor,
    groups: torch.Tensor,
    tasks: torch.Tensor,
) -> Advantages:
    """Turn rewards and lengths into advantages, as the run is described.

    Parameters
    ----------
    description : RunDescription
        Its estimator and length sections.
    rewards : Rewards
        N scored responses.
    lengths : Tensor (N,)
        Tokens.
    groups, tasks : Tensor (N,), int64
        Prompt and task of each response; tasks number ``description.data.tasks``.

    Returns
    -------
    Advantages
    """
    length = description.length
    total = rewards.reward
    if length.mode == "off":
        return Advantages(_estimate(description, total, groups, tasks), None, None)
    right = rewards.accuracy >= RIGHT_FROM if length.only_right else None
    length_reward = _length_reward(description, lengths, tasks, right)
    if length.mode == "reward":
        total = total + length.weight * torch.nan_to_num(length_reward)
        return Advantages(_estimate(description, total, groups, tasks), None, length_reward)
    return Advantages(
        policy=_estimate(description, total, groups, tasks),
        length=g2rpo.gaussian_advantages(length_reward, groups, tasks),
        length_reward=length_reward,
    )


def _estimate(
    description: RunDescription, rewards: torch.Tensor, groups: torch.Tensor, tasks: torch.Tensor
) -> torch.Tensor:
    estimator = description.estimator
    # The other estimators have no use for what the description says of Gaussian matching.
    options = estimator.model_dump(exclude={"name"}) if estimator.name == "gaussian" else {}
    return g2rpo.ESTIMATORS[estimator.name](rewards, groups, tasks, **options)


def _length_reward(
    description: RunDescription,
    lengths: torch.Tensor,
    tasks: torch.Tensor,
    right: torch.Tensor | None,
) -> torch.Tensor:
    targets = description.length.targets
    # A task without a target rewards no length: NaN, which takes no part in any ranking.
    table = torch.tensor([targets.get(task, (0.0,) * 4) for task in description.data.tasks])
    has_target = torch.tensor([task in targets for task in description.data.tasks])
    reward = g2rpo.length_reward(lengths, table[tasks], right=right)
    return torch.where(has_target[tasks], reward, torch.nan)
