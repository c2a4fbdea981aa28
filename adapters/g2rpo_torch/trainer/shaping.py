"""From rewards and lengths to the advantages of the two surrogate terms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import g2rpo
from g2rpo.run.controllers import EntropyControl, LengthControl
from g2rpo.run.description import RunDescription
from g2rpo.run.scoring import reward_weights
from g2rpo_torch import reduce_totals

from .scoring import Rewards


class Advantages(NamedTuple):
    """What each rollout's tokens are pushed by, (N,) each.

    Attributes
    ----------
    policy : Tensor
        Advantages of the rewards.
    length : Tensor or None
        Advantages of the length rewards; None if length is no term of its own.
    length_reward : Tensor or None
        How well each response's length fits its target, from 0 to 1; NaN where no length is
        rewarded. None if length is not shaped.
    """

    policy: torch.Tensor
    length: torch.Tensor | None
    length_reward: torch.Tensor | None = None


class Shaping:
    """Turns rewards and lengths into advantages, as a run is described.

    It carries what an estimator, length targets and entropy weights remember from step to step;
    ``state_dict`` goes into the checkpoint.

    Parameters
    ----------
    description : RunDescription
        Its estimator, rewards, length and entropy sections; the tasks are named.
    """

    def __init__(self, description: RunDescription) -> None:
        self._description = description
        self._length, self._entropy = LengthControl(description), EntropyControl(description)
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
        """Return the advantages of a step's N rollouts; called once a step.

        Parameters
        ----------
        rewards : Rewards
            N scored responses.
        lengths : Tensor (N,)
            Tokens.
        groups, tasks : Tensor (N,), int64
            Prompt and task of each response; tasks number ``description.data.tasks``.
        """
        mode = self._description.length.mode
        length_reward = None if mode == "off" else self._length_reward(rewards, lengths, tasks)
        self._length.observe(lengths.numpy(), rewards.accuracy.numpy(), tasks.numpy())
        length = None
        if mode == "term":
            length = g2rpo.gaussian_advantages(length_reward, groups, tasks)
        in_reward = length_reward if mode == "reward" else None
        policy = self._estimate(rewards, in_reward, groups, tasks)
        return Advantages(policy, length, length_reward)

    def steer(
        self, entropies: torch.Tensor, mask: torch.Tensor, tasks: torch.Tensor
    ) -> RunDescription:
        """Return the description with this step's entropy weights; called once a step.

        Parameters
        ----------
        entropies, mask : Tensor (N, T)
            Entropy of each token, in nats, and which tokens there are; of several processes each
            gives its own.
        tasks : Tensor (N,), int64
            Task of each response.
        """
        count = len(self._description.data.tasks)
        totals = reduce_totals(
            g2rpo.batch_totals(
                mask, entropies=entropies, tasks=tasks.to(mask.device), num_tasks=count
            )
        )
        means, tokens = totals.task_entropy, totals.task_tokens
        assert means is not None  # entropies are given
        assert tokens is not None
        self._entropy.observe(means.cpu().numpy(), (tokens > 0).cpu().numpy())
        return self._entropy.steered(self._description)

    def metrics(self) -> dict[str, float]:
        """Return each task's length target and entropy weight as they are now."""
        return {**self._length.metrics(), **self._entropy.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {
            "ema": self._ema.to_json() if self._ema else {},
            "length": self._length.state_dict(),
            "entropy": self._entropy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._length.load_state_dict(state["length"])
        self._entropy.load_state_dict(state["entropy"])
        if self._ema:
            self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)

    def _estimate(
        self,
        rewards: Rewards,
        length_reward: torch.Tensor | None,
        groups: torch.Tensor,
        tasks: torch.Tensor,
    ) -> torch.Tensor:
        estimator = self._description.estimator
        if estimator.decoupled or estimator.name == "gdpo":
            return self._estimate_decoupled(rewards, length_reward, groups, tasks)
        total = rewards.reward
        if length_reward is not None:
            # A length that is not rewarded adds nothing; a reward that is absent stays so.
            total = total + self._description.length.weight * torch.nan_to_num(length_reward)
        if self._ema:
            advantages, self._ema = g2rpo.ema_grpo_advantages(total, groups, tasks, self._ema)
            return advantages
        return g2rpo.ESTIMATORS[estimator.name](total, groups, tasks, **self._options())

    def _estimate_decoupled(
        self,
        rewards: Rewards,
        length_reward: torch.Tensor | None,
        groups: torch.Tensor,
        tasks: torch.Tensor,
    ) -> torch.Tensor:
        weights = reward_weights(self._description)._asdict()
        columns = [getattr(rewards, name) for name in weights]
        if length_reward is not None:
            columns.append(length_reward)
            weights["length"] = self._description.length.weight
        return g2rpo.ESTIMATORS[self._description.estimator.name](
            torch.stack(columns, dim=1),
            groups,
            tasks,
            component_weights=list(weights.values()),
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        estimator = self._description.estimator
        # Other estimators have no use for what the description says of Gaussian matching.
        return estimator.model_dump(exclude={"name"}) if estimator.name == "gaussian" else {}

    def _length_reward(
        self, rewards: Rewards, lengths: torch.Tensor, tasks: torch.Tensor
    ) -> torch.Tensor:
        thresholds = torch.from_numpy(self._length.thresholds).float()[tasks]
        # NaN is no reward, and takes no part in any ranking.
        counts = ~thresholds.isnan().any(dim=1) & self._length.is_rewarding
        if self._description.length.only_right:
            # Without this gate a policy learns that half an answer is shorter than a whole one.
            counts &= rewards.accuracy > 0
        return g2rpo.length_reward(lengths, thresholds, right=counts)
