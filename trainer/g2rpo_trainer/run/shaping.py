"""From rewards and lengths to the advantages of the two surrogate terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo.advantages import takes_lengths
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.run.controllers import EntropyControl, LengthControl, TaskWeightControl
from g2rpo_trainer.scoring import Floats, Rewards, reward_weights

Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]


class Advantages(NamedTuple):
    """What each rollout's tokens are pushed by, (N,) each.

    Attributes
    ----------
    policy : array
        Advantages of the rewards.
    length : array or None
        Advantages of the length rewards; None if length is no term of its own.
    length_reward : array or None
        How well each response's length fits its target, from 0 to 1; NaN where no length is
        rewarded. None if length is not shaped.
    """

    policy: Floats
    length: Floats | None
    length_reward: Floats | None = None


class Shaping:
    """Turns rewards and lengths into advantages, as a run is described.

    On the host, in NumPy: a step has a few thousand numbers. It carries what an estimator, length
    targets, entropy weights and task weights remember from step to step; ``state_dict`` goes into
    the checkpoint.

    Parameters
    ----------
    config : TrainConfig
        Its estimator, rewards, length, entropy and task_weights sections; the tasks are named.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._description = config
        self._length, self._entropy = LengthControl(config), EntropyControl(config)
        self._task_weights = TaskWeightControl(config)
        self._ema: g2rpo.EMAState | None = None
        if config.estimator.name == "ema-grpo":
            zeros = np.zeros(1, np.float32)
            self._ema = g2rpo.EMAState.start(len(config.data.tasks), zeros)

    def __call__(
        self,
        rewards: Rewards,
        lengths: Labels,
        groups: Labels | int,
        tasks: Labels,
        absent: Flags | None = None,
    ) -> Advantages:
        """Return the advantages of a step's N rollouts; called once a step.

        Parameters
        ----------
        rewards : Rewards
            N scored responses.
        lengths : array (N,)
            Tokens.
        groups : array (N,), integer, or int
            Prompt of each response, or the number of responses to each prompt where those of one
            prompt are next to each other.
        tasks : array (N,), integer
            Task of each response; tasks number ``config.data.tasks``.
        absent : array (N,), bool, optional
            Responses that enter no statistic; their advantages are 0.
        """
        mode = self._description.length.mode
        length_reward = None if mode == "off" else self._length_reward(rewards, lengths, tasks)
        if absent is not None:
            rewards = rewards.without(absent)
            if length_reward is not None:
                length_reward = np.where(absent, np.float32(np.nan), length_reward)
        self._length.observe(lengths, rewards.accuracy, tasks)
        length = None
        if mode == "term":
            length = g2rpo.gaussian_advantages(length_reward, groups, tasks)
        in_reward = length_reward if mode == "reward" else None
        policy = self._estimate(rewards, in_reward, lengths, groups, tasks)
        return Advantages(policy, length, length_reward)

    def steer(
        self, means: npt.NDArray[np.floating[Any]], present: npt.NDArray[np.bool_]
    ) -> TrainConfig:
        """Return the configuration with this step's entropy weights; called once a step.

        Parameters
        ----------
        means : array (num_tasks,)
            Mean token entropy of each task in nats, as :func:`g2rpo.task_means` gives it.
        present : array (num_tasks,), bool
            Which tasks the step has.
        """
        self._entropy.observe(means, present)
        return self._entropy.steered(self._description)

    def weighted(self, advantages: Floats, tasks: Labels) -> Floats:
        """Return advantages (N,) times the weights of their tasks (N,)."""
        weighted: Floats = g2rpo.weigh_tasks(advantages, tasks, self._task_weights.weights)
        return weighted

    def balance(self, norms: Mapping[str, float], step: int) -> None:
        """Let the task weights of the next steps follow the norms of the tasks' gradients."""
        self._task_weights.observe(norms, step)

    def metrics(self) -> dict[str, float]:
        """Return each task's length target, entropy weight and weight as they are now."""
        controls = (self._length, self._entropy, self._task_weights)
        return {name: value for each in controls for name, value in each.metrics().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {
            "ema": self._ema.to_json() if self._ema else {},
            "length": self._length.state_dict(),
            "entropy": self._entropy.state_dict(),
            "task_weights": self._task_weights.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._length.load_state_dict(state["length"])
        self._entropy.load_state_dict(state["entropy"])
        self._task_weights.load_state_dict(state["task_weights"])
        if self._ema:
            self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)

    def _estimate(
        self,
        rewards: Rewards,
        length_reward: Floats | None,
        lengths: Labels,
        groups: Labels | int,
        tasks: Labels,
    ) -> Floats:
        estimator = self._description.estimator
        options: dict[str, Any] = dict(estimator.options)
        if estimator.name == "gaussian":
            # Other estimators have no use for what the configuration says of Gaussian matching.
            options = estimator.model_dump(exclude={"name", "options"})
        values = rewards.reward
        if estimator.decoupled or estimator.name == "gdpo":
            values, options["component_weights"] = self._components(rewards, length_reward)
        elif length_reward is not None:
            weight = self._description.length.weight
            if estimator.name == "gaussian":
                # Components, not their sum: equal sums that differ by a rounding are to be ties.
                length_reward = np.where(np.isnan(values), values, length_reward)
                values = np.stack([values, length_reward], axis=1)
                options["component_weights"] = [1.0, weight]
            else:
                # A length that is not rewarded adds nothing; a reward that is absent stays so.
                values = values + np.float32(weight) * np.nan_to_num(length_reward)
        if self._ema:
            advantages, self._ema = g2rpo.ema_grpo_advantages(
                values, groups, tasks, self._ema, **options
            )
        else:
            function = g2rpo.ESTIMATORS[estimator.name]
            if takes_lengths(function):
                options["lengths"] = lengths
            advantages = function(values, groups, tasks, **options)
        found: Floats = advantages
        return found

    def _components(
        self, rewards: Rewards, length_reward: Floats | None
    ) -> tuple[Floats, list[float]]:
        """Return the components of the rewards (N, K), and what each of them weighs."""
        weights = reward_weights(self._description)._asdict()
        columns = [getattr(rewards, name) for name in weights]
        if length_reward is not None:
            columns.append(length_reward)
            weights["length"] = self._description.length.weight
        return np.stack(columns, axis=1), list(weights.values())

    def _length_reward(self, rewards: Rewards, lengths: Labels, tasks: Labels) -> Floats:
        thresholds = self._length.thresholds.astype(np.float32)[tasks]
        # NaN is no reward, and takes no part in any ranking.
        counts = ~np.isnan(thresholds).any(axis=1) & self._length.is_rewarding
        if self._description.length.only_right:
            # Without this gate a policy learns that half an answer is shorter than a whole one.
            counts &= rewards.accuracy > 0
        found: Floats = g2rpo.length_reward(lengths.astype(np.float32), thresholds, right=counts)
        return found
