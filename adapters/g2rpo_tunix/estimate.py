"""From rewards and lengths to advantages, as a configuration says, with the state they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo._components import weighted_rewards, weights_if_components
from g2rpo._suggest import unknown_name
from g2rpo.advantages import takes_lengths

from .handover import Rollouts

if TYPE_CHECKING:
    from .config import G2RPOConfig

Floats = npt.NDArray[np.float64]


class Advantages(NamedTuple):
    """Advantages (N,) of the rewards and, where length is a term of its own, of the lengths."""

    policy: Floats
    length: Floats | None


def check_estimator(name: str, options: Mapping[str, Any]) -> None:
    """Raise if there is no such estimator, or it does not take these options."""
    if name not in g2rpo.ESTIMATORS:
        raise ValueError(unknown_name("estimator", name, g2rpo.ESTIMATORS))
    if "component_weights" in options:
        raise ValueError("estimator_options must not have component_weights: set reward_weights")
    none = np.zeros(2, dtype=np.int64)
    lengths = {"lengths": none} if takes_lengths(g2rpo.ESTIMATORS[name]) else {}
    try:
        g2rpo.ESTIMATORS[name](np.zeros(2), none, none, **lengths, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"estimator_options of {name!r}: {error}") from None


def prompt_numbers(size: int, num_generations: int) -> npt.NDArray[np.int64]:
    """Return the number of each rollout's prompt; tunix keeps a prompt's responses together."""
    return np.arange(size // group_size(size, num_generations)).repeat(num_generations)


def group_size(size: int, num_generations: int) -> int:
    """Return how many consecutive rollouts a prompt has, once ``size`` are of whole groups."""
    if size % num_generations:
        raise ValueError(
            f"rewards must be those of whole groups of {num_generations}, got {size} rollouts"
        )
    return num_generations


def total_rewards(rewards: Floats, weights: Any) -> Floats:
    """Return the weighted sums (N,) of rewards (N, K); NaN where all components are absent."""
    total, _ = weighted_rewards(np, rewards, weights_if_components(np, weights, rewards))
    return np.asarray(total)


class Shaping:
    """Turns a batch of rollouts into advantages; carries what EMA-GRPO remembers.

    Parameters
    ----------
    config : G2RPOConfig
        Tasks, estimator, weights and length targets.
    names : list of str
        Names of the reward functions, in order.
    """

    def __init__(self, config: G2RPOConfig, names: list[str]) -> None:
        self._config = config
        weights = config.reward_weights
        if weights is not None and len(weights) != len(names):
            raise ValueError(
                f"reward_weights must have {len(names)} weights, one for each of "
                f"{', '.join(names)}, got {len(weights)}"
            )
        self._weights = [1.0] * len(names) if weights is None else [float(w) for w in weights]
        self._right: int | None = None
        if config.length_only_right is not None:
            if config.length_only_right not in names:
                text = unknown_name("reward function", config.length_only_right, names)
                raise ValueError(f"length_only_right: {text}")
            self._right = names.index(config.length_only_right)
        self._ema: g2rpo.EMAState | None = None
        if config.estimator == "ema-grpo":
            self._ema = g2rpo.EMAState.start(len(config.task_names), np.zeros(1))

    def __call__(
        self, rollouts: Rollouts, lengths: npt.NDArray[np.int64] | None, num_generations: int
    ) -> Advantages:
        """Return the advantages of N rollouts whose responses have so many tokens."""
        rewards, weights = rollouts.rewards.reshape(len(rollouts.rewards), -1), self._weights
        groups = group_size(len(rewards), num_generations)
        tasks = rollouts.tasks
        if tasks is None:
            tasks = np.zeros(len(rewards), dtype=np.int64)
        mode, length_advantages = self._config.length_mode, None
        if mode != "off":
            if lengths is None:
                raise RuntimeError(
                    "length shaping needs the rollouts' lengths in tokens: train with G2RPOLearner"
                )
            length_reward = self._length_reward(rewards, lengths, tasks)
            if mode == "term":
                length_advantages = g2rpo.gaussian_advantages(length_reward, groups, tasks)
            else:
                rewards = np.column_stack([rewards, length_reward])
                weights = [*weights, self._config.length_weight]
        policy = self._estimate(rewards, weights, lengths, groups, tasks, rollouts.training)
        return Advantages(policy, length_advantages)

    def total(self, rewards: Floats) -> Floats:
        """Return each rollout's reward (N,): the weighted sum of its components (N, K)."""
        return total_rewards(rewards, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        if self._ema is None:
            return {}
        return {"tasks": list(self._config.task_names), "ema": self._ema.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises
        ------
        ValueError
            If the state is missing or that of other tasks.
        """
        if self._ema is None:
            return
        if state.get("tasks") != list(self._config.task_names):
            raise ValueError(
                f"the checkpoint's state must be that of the tasks {list(self._config.task_names)}"
                f", got {state.get('tasks', 'no state')}"
            )
        self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)

    def _estimate(
        self,
        rewards: Floats,
        weights: list[float],
        lengths: npt.NDArray[np.int64] | None,
        groups: int,
        tasks: Any,
        training: bool,
    ) -> Floats:
        options = dict(self._config.estimator_options)
        if self._ema is not None:
            total = total_rewards(rewards, weights)
            advantages, state = g2rpo.ema_grpo_advantages(
                total, groups, tasks, self._ema, **options
            )
            if training:
                self._ema = state
            return advantages
        estimator = g2rpo.ESTIMATORS[self._config.estimator]
        if takes_lengths(estimator):
            if lengths is None:
                raise RuntimeError(
                    f"estimator {self._config.estimator!r} needs the rollouts' lengths in tokens: "
                    "train with G2RPOLearner"
                )
            options["lengths"] = lengths
        if weights == [1.0]:
            return estimator(rewards[:, 0], groups, tasks, **options)
        return estimator(rewards, groups, tasks, component_weights=weights, **options)

    def _length_reward(self, rewards: Floats, lengths: Any, tasks: Any) -> Floats:
        targets, names = self._config.length_targets, self._config.task_names
        # A task without a target rewards no length: NaN, which takes no part in any ranking.
        table = np.asarray([targets.get(name, (0.0,) * 4) for name in names], dtype=np.float64)
        has_target = np.asarray([name in targets for name in names])
        right = None if self._right is None else rewards[:, self._right] > 0
        reward = g2rpo.length_reward(lengths.astype(np.float64), table[tasks], right=right)
        return np.where(has_target[tasks], reward, np.nan)
