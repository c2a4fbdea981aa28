"""From rewards and lengths to the advantages of the two surrogate terms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import g2rpo
from g2rpo.run.description import RunDescription

from .scoring import Rewards


class Advantages(NamedTuple):
    """What each rollout's tokens are pushed by, (N,) each.

    Attributes
    ----------
    policy : Tensor
        Advantages of the rewards.
    length : Tensor or None
        Advantages of the length rewards; None if length is no term of its own.
    """

    policy: torch.Tensor
    length: torch.Tensor | None


class Shaping:
    """Turns rewards and lengths into advantages, as a run is described.

    It carries what an estimator remembers from step to step; ``state_dict`` goes into the
    checkpoint.

    Parameters
    ----------
    description : RunDescription
        Its estimator and length sections.
    """

    def __init__(self, description: RunDescription) -> None:
        self._description = description
        self._ema: g2rpo.EMAState | None = None
        if description.estimator.name == "ema-grpo":
            self._ema = g2rpo.EMAState.start(len(description.data.tasks), torch.zeros(1))

    def __call__(
        self,
        rewards: Rewards,
        lengths: torch.Tensor,
        groups: torch.Tensor,
        tasks: torch.Tensor,
    ) -> Advantages:
        """Return the advantages of N rollouts.

        Parameters
        ----------
        rewards : Rewards
            N scored responses.
        lengths : Tensor (N,)
            Tokens.
        groups, tasks : Tensor (N,), int64
            Prompt and task of each response; tasks number ``description.data.tasks``.
        """
        length, total = self._description.length, rewards.reward
        if length.mode == "off":
            return Advantages(self._estimate(total, groups, tasks), None)
        # Without this gate a policy learns that half an answer is shorter than a whole one.
        right = rewards.accuracy > 0 if length.only_right else None
        length_reward = self._length_reward(lengths, tasks, right)
        if length.mode == "reward":
            total = total + length.weight * torch.nan_to_num(length_reward)
            return Advantages(self._estimate(total, groups, tasks), None)
        return Advantages(
            policy=self._estimate(total, groups, tasks),
            length=g2rpo.gaussian_advantages(length_reward, groups, tasks),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {"ema": self._ema.to_json()} if self._ema else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._ema:
            self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)

    def _estimate(
        self, rewards: torch.Tensor, groups: torch.Tensor, tasks: torch.Tensor
    ) -> torch.Tensor:
        if self._ema:
            advantages, self._ema = g2rpo.ema_grpo_advantages(rewards, groups, tasks, self._ema)
            return advantages
        estimator = self._description.estimator
        # Other estimators have no use for what the description says of Gaussian matching.
        options = estimator.model_dump(exclude={"name"}) if estimator.name == "gaussian" else {}
        return g2rpo.ESTIMATORS[estimator.name](rewards, groups, tasks, **options)

    def _length_reward(
        self, lengths: torch.Tensor, tasks: torch.Tensor, right: torch.Tensor | None
    ) -> torch.Tensor:
        targets, names = self._description.length.targets, self._description.data.tasks
        # A task without a target rewards no length: NaN, which takes no part in any ranking.
        table = torch.tensor([targets.get(task, (0.0,) * 4) for task in names])
        has_target = torch.tensor([task in targets for task in names])
        reward = g2rpo.length_reward(lengths, table[tasks], right=right)
        return torch.where(has_target[tasks], reward, torch.nan)
