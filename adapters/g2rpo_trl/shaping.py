"""From rewards and lengths to advantages, and the state that lives from step to step.

On the host, in NumPy: a batch has a few thousand numbers. Every process computes the same, from the
rollouts of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo._components import weighted_rewards
from g2rpo._suggest import unknown_name
from g2rpo.advantages import takes_lengths

from .config import G2RPOConfig

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


class Rollouts(NamedTuple):
    """The rollouts of all processes; those of a prompt are next to each other.

    Attributes
    ----------
    rewards : array (N, K)
        Of each reward function, float32; NaN is absent.
    lengths : array (N,)
        Tokens that the policy wrote.
    tasks : array (N,)
        Numbers of the tasks.
    clipped : array (N,), bool
        Whether a response was cut off at the longest length.
    num_generations : int
        Responses to each prompt.
    """

    rewards: Floats
    lengths: Labels
    tasks: Labels
    clipped: npt.NDArray[np.bool_]
    num_generations: int


class Advantages(NamedTuple):
    """Advantages (N,) of the rewards; of the length rewards, if length is a term of its own.

    ``length_reward`` (N,) is from 0 to 1, and NaN where no length is rewarded.
    """

    policy: Floats
    length: Floats | None
    length_reward: Floats | None


class Shaping:
    """Turns rollouts into advantages, as configured, and adapts what is to be adapted.

    Parameters
    ----------
    config : G2RPOConfig
        Estimator, entropy, length and task weights.
    tasks : sequence of str
        Names of the tasks, in the order of their numbers.
    reward_names : sequence of str
        Names of the reward functions.
    reward_weights : sequence of float
        Their weights.
    """

    def __init__(
        self,
        config: G2RPOConfig,
        tasks: Sequence[str],
        reward_names: Sequence[str],
        reward_weights: Sequence[float],
    ) -> None:
        self._config, self.tasks, self.reward_weights = config, tuple(tasks), list(reward_weights)
        self._right = None
        if (name := config.length_only_right) is not None:
            if name not in reward_names:
                text = unknown_name("reward function", name, reward_names)
                raise ValueError(f"length_only_right: {text}")
            self._right = list(reward_names).index(name)
        targets = [config.target_of(task) for task in tasks]
        rows = [target.thresholds if target else (np.nan,) * 4 for target in targets]
        self._thresholds: Floats = np.asarray(rows, np.float64)
        self.length_mode = config.length_mode
        if np.isnan(self._thresholds).all() and not config.length_calibrate:
            self.length_mode = "off"
        if self.length_mode != "off" and "length" in reward_names:
            raise ValueError(
                "a reward function must not be called 'length', the name of the length reward in "
                "the metrics; rename it, or set length_mode='off'"
            )
        self._calibrations = 0
        own_bounds, own_weights = config.given("entropy_bounds"), config.given("entropy_weights")
        common = (config.entropy_low, config.entropy_high)
        #: Bounds of each task's entropy in nats, (num_tasks, 2), and weights, (num_tasks,).
        self.entropy_bounds: Floats = np.asarray([own_bounds.get(t, common) for t in tasks], float)
        self.entropy_weights: Floats = np.asarray(
            [own_weights.get(task, config.entropy_weight) for task in tasks], float
        )
        factors = config.given("task_weights")
        self._task_weights = np.asarray([factors.get(task, 1.0) for task in tasks], np.float32)
        self._ema: g2rpo.EMAState | None = None
        if config.estimator == "ema-grpo":
            self._ema = g2rpo.EMAState.start(len(tasks), np.zeros(1, np.float32))

    def __call__(self, rollouts: Rollouts, *, training: bool) -> Advantages:
        """Return the advantages of a batch; without training nothing is remembered of it."""
        rewards, groups, tasks = rollouts.rewards, rollouts.num_generations, rollouts.tasks
        weights, length_reward, length = self.reward_weights, None, None
        if self.length_mode != "off":
            length_reward = self._length_reward(rollouts)
            if training:
                self._calibrate(rollouts)
        if self.length_mode == "term":
            length = self._weighted(g2rpo.gaussian_advantages(length_reward, groups, tasks), tasks)
        elif length_reward is not None:
            # A response without any reward has none for its length either.
            known = np.where(np.isnan(rewards).all(axis=1), np.float32(np.nan), length_reward)
            rewards = np.column_stack([rewards, known])
            weights = [*weights, self._config.length_weight]
        policy = self._estimate(rewards, weights, rollouts, training)
        return Advantages(self._weighted(policy, tasks), length, length_reward)

    @property
    def shapes_entropy(self) -> bool:
        """Whether there is an entropy term, or may come to be one."""
        return self._config.entropy_control == "adaptive" or bool(self.entropy_weights.any())

    def observe_entropies(self, means: Floats, present: npt.NDArray[np.bool_]) -> None:
        """Adapt the weights of the entropy term to the tasks' mean entropies (num_tasks,)."""
        if self._config.entropy_control == "fixed":
            return
        self.entropy_weights = g2rpo.adapt_entropy_weights(
            self.entropy_weights,
            means.astype(np.float64),
            self.entropy_bounds[:, 0],
            self.entropy_bounds[:, 1],
            present,
            learning_rate=self._config.entropy_control_rate,
            maximum=self._config.entropy_max_weight,
        )

    def metrics(self) -> dict[str, float]:
        """Return each task's length target, entropy weight and weight as they are now."""
        columns = {"entropy_weight": self.entropy_weights}
        if self.length_mode != "off":
            columns["length_target/low"] = self._thresholds[:, 1]
            columns["length_target/high"] = self._thresholds[:, 2]
        if self._config.task_weights:
            columns["task_weight"] = self._task_weights
        return {
            f"{name}/{task}": float(value)
            for name, column in columns.items()
            for task, value in zip(self.tasks, column, strict=True)
            if not np.isnan(value)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it; empty if all follows from the configuration."""
        state: dict[str, Any] = {}
        if self._ema is not None:
            state["ema"] = self._ema.to_json()
        if self._config.entropy_control == "adaptive":
            state["entropy_weights"] = self.entropy_weights.tolist()
        if self._config.length_calibrate:
            # As text: JSON has no infinity, and a number's shortest text is exact.
            targets = self._thresholds.astype(str).tolist()
            state["length"] = {"steps": self._calibrations, "targets": targets}
        return {"tasks": list(self.tasks), **state} if state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises
        ------
        ValueError
            If it is the state of other tasks, or of another configuration.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys() or state.get("tasks") != mine.get("tasks"):
            raise ValueError(
                f"the checkpoint's state must be that of the tasks {mine.get('tasks', [])} with "
                f"{_parts(mine)}, got {state.get('tasks', [])} with {_parts(state)}; resume with "
                "the options and tasks that it was written with"
            )
        if self._ema is not None:
            self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)
        if "entropy_weights" in state:
            self.entropy_weights = np.asarray(state["entropy_weights"], np.float64)
        if "length" in state:
            self._calibrations = state["length"]["steps"]
            self._thresholds = np.asarray(state["length"]["targets"], np.float64)

    def _estimate(
        self, rewards: Floats, weights: list[float], rollouts: Rollouts, training: bool
    ) -> Floats:
        options = dict(self._config.given("estimator_options"))
        groups, tasks = rollouts.num_generations, rollouts.tasks
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
            options["lengths"] = rollouts.lengths
        if weights == [1.0]:
            return estimator(rewards[:, 0], groups, tasks, **options)
        return estimator(rewards, groups, tasks, component_weights=weights, **options)

    def _weighted(self, advantages: Floats, tasks: Labels) -> Floats:
        return g2rpo.weigh_tasks(advantages, tasks, self._task_weights)

    def _length_reward(self, rollouts: Rollouts) -> Floats:
        thresholds = self._thresholds.astype(np.float32)[rollouts.tasks]
        counts = ~np.isnan(thresholds).any(axis=1) & self._is_rewarding
        if self._right is not None:
            counts &= rollouts.rewards[:, self._right] > 0
        return g2rpo.length_reward(rollouts.lengths.astype(np.float32), thresholds, right=counts)

    @property
    def _is_rewarding(self) -> bool:
        config = self._config
        return not config.length_calibrate or (
            self._calibrations >= config.calibration["warmup_steps"]
        )

    def _calibrate(self, rollouts: Rollouts) -> None:
        if not self._config.length_calibrate:
            return
        accuracy = np.nan_to_num(rollouts.rewards[:, self._right].astype(np.float64))
        right = accuracy > 0
        for task in np.unique(rollouts.tasks):
            # With graded rewards nearly every response gets something: those below the mean do not
            # count.
            members = rollouts.tasks == task
            right &= ~members | (accuracy >= accuracy[members].mean())
        options = self._config.calibration
        del options["warmup_steps"]
        self._thresholds = g2rpo.calibrate_lengths(
            self._thresholds, rollouts.lengths.astype(np.float64), right, rollouts.tasks, **options
        )
        self._calibrations += 1


def total_rewards(rewards: Floats, weights: Sequence[float]) -> Floats:
    """Return the weighted sums (N,) of rewards (N, K); NaN where all components are absent."""
    total, _ = weighted_rewards(np, rewards, np.asarray(weights, rewards.dtype))
    return total


def _parts(state: Mapping[str, Any]) -> str:
    return ", ".join(name for name in state if name != "tasks") or "nothing"
