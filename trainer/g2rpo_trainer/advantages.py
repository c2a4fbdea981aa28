"""From rewards and lengths to advantages, and the controllers that change from step to step.

All of it is NumPy on the host: a step has a few thousand numbers. The controllers hold a few
numbers a task (length target, entropy weight, task weight), which are saved in the checkpoint; the
configuration itself never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo.advantages import takes_lengths
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.scoring import Floats, Rewards, reward_weights

__all__ = ["AdaptiveWeights", "Advantages", "LengthControl", "Shaping"]

Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Advantages:
    """The advantages of N rollouts.

    Attributes
    ----------
    policy : array (N,)
        Advantages of the rewards.
    length : array (N,) or None
        Advantages of the length rewards; None if length is no term of its own.
    length_reward : array (N,) or None
        Length rewards, from 0 to 1; NaN where no length is rewarded. None without length shaping.
    task_weights : array (num_tasks,)
        Factors of the tasks' advantages in the loss.
    """

    policy: Floats
    length: Floats | None
    length_reward: Floats | None
    task_weights: Doubles

    def weighted(self, tasks: Labels) -> Advantages:
        """Return the advantages times the weights of their tasks (N,), as the loss takes them."""
        policy = g2rpo.weigh_tasks(self.policy, tasks, self.task_weights)
        if self.length is None:
            return replace(self, policy=policy)
        length = g2rpo.weigh_tasks(self.length, tasks, self.task_weights)
        return replace(self, policy=policy, length=length)


class Shaping:
    """Turns rewards and lengths into advantages, and adapts targets and weights between steps.

    Parameters
    ----------
    config : TrainConfig
        With the sections estimator, rewards, length, entropy and task_weights; tasks are named.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        tasks, entropy, factors = config.data.tasks, config.entropy, config.task_weights
        self._length = LengthControl(config)
        self._entropy = AdaptiveWeights(
            "entropy_weight",
            tasks,
            [entropy.weight_of(task) for task in tasks],
            is_adapted=entropy.control == "adaptive",
        )
        self._task_weights = AdaptiveWeights(
            "task_weight",
            tasks,
            [factors.weights.get(task, 1.0) for task in tasks],
            is_adapted=bool(factors.adapt),
        )
        self._ema: g2rpo.EMAState | None = None
        if config.estimator.name == "ema-grpo":
            self._ema = g2rpo.EMAState.start(len(tasks), np.zeros(1, np.float32))

    @property
    def entropy_weights(self) -> Doubles:
        """Weight of each task's entropy term in the next update, (num_tasks,)."""
        return self._entropy.values

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
            In tokens.
        groups : array (N,), integer, or int
            Prompt of each response, or the number of responses to each prompt where those of one
            prompt are next to each other.
        tasks : array (N,), integer
            Task of each response, as its number in ``config.data.tasks``.
        absent : array (N,), bool, optional
            Responses that enter no statistic; their advantages are 0.
        """
        mode = self._config.length.mode
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
        return Advantages(policy, length, length_reward, self._task_weights.values)

    def adapt_entropy_weights(self, means: npt.NDArray[np.floating[Any]], present: Flags) -> None:
        """Adapt the entropy weights to the entropies of a step; called once a step.

        Parameters
        ----------
        means : array (num_tasks,)
            Mean token entropy of each task in nats, as :func:`g2rpo.task_means` gives it.
        present : array (num_tasks,), bool
            Tasks that the step has.
        """
        options = self._config.entropy
        if not self._entropy.is_adapted:
            return
        bounds = np.asarray([options.of(task) for task in self._config.data.tasks], np.float64)
        self._entropy.values = g2rpo.adapt_entropy_weights(
            self._entropy.values,
            means.astype(np.float64),
            bounds[:, 0],
            bounds[:, 1],
            present,
            learning_rate=options.control_rate,
            maximum=options.max_weight,
        )

    def adapt_task_weights(self, norms: Mapping[str, float], step: int) -> None:
        """Adapt the task weights of later steps, if an adaptation is due after this step.

        Parameters
        ----------
        norms : mapping of str to float
            Norm of each measured task's own gradient, under its current weight.
        step : int
            From 1.
        """
        options = self._config.task_weights
        if not options.adapt or step % options.adapt:
            return
        measured = [norms.get(task, np.nan) for task in self._config.data.tasks]
        self._task_weights.values = g2rpo.adapt_task_weights(
            np.asarray(measured, np.float64),
            self._task_weights.values,
            rate=options.rate,
            low=options.low,
            high=options.high,
        )

    def metrics(self) -> dict[str, float]:
        """Return the length target, entropy weight and task weight of each task."""
        metrics = self._length.metrics() | self._entropy.metrics()
        options = self._config.task_weights
        if options.adapt or options.weights:  # otherwise all of them stay at 1
            metrics |= self._task_weights.metrics()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a JSON file."""
        return {
            "ema": self._ema.to_json() if self._ema else {},
            "length": self._length.state_dict(),
            "entropy": self._entropy.state_dict(),
            "task_weights": self._task_weights.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from the result of ``state_dict``."""
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
        estimator = self._config.estimator
        options: dict[str, Any] = dict(estimator.options)
        if estimator.name == "gaussian":
            # The options of Gaussian matching are fields of the section itself.
            options = estimator.model_dump(exclude={"name", "options"})
        values = rewards.reward
        if estimator.decoupled or estimator.name == "gdpo":
            values, options["component_weights"] = self._components(rewards, length_reward)
        elif length_reward is not None:
            weight = self._config.length.weight
            if estimator.name == "gaussian":
                # Components, not their sum: equal sums that differ by a rounding are to be ties.
                length_reward = np.where(np.isnan(values), values, length_reward)
                values = np.stack([values, length_reward], axis=1)
                options["component_weights"] = [1.0, weight]
            else:
                # A length that is not rewarded adds nothing; a reward that is absent stays so.
                values = values + np.float32(weight) * np.nan_to_num(length_reward)
        advantages: Floats
        if self._ema:
            advantages, self._ema = g2rpo.ema_grpo_advantages(
                values, groups, tasks, self._ema, **options
            )
            return advantages
        function = g2rpo.ESTIMATORS[estimator.name]
        if takes_lengths(function):
            options["lengths"] = lengths
        advantages = function(values, groups, tasks, **options)
        return advantages

    def _components(
        self, rewards: Rewards, length_reward: Floats | None
    ) -> tuple[Floats, list[float]]:
        """Return the components of the rewards (N, K) and their weights."""
        weights = reward_weights(self._config)._asdict()
        columns = [getattr(rewards, name) for name in weights]
        if length_reward is not None:
            columns.append(length_reward)
            weights["length"] = self._config.length.weight
        return np.stack(columns, axis=1), list(weights.values())

    def _length_reward(self, rewards: Rewards, lengths: Labels, tasks: Labels) -> Floats:
        thresholds = self._length.thresholds.astype(np.float32)[tasks]
        # NaN is no reward, and takes no part in any ranking.
        counts = ~np.isnan(thresholds).any(axis=1) & self._length.is_rewarding
        if self._config.length.only_right:
            # Without this gate a policy learns that half an answer is shorter than a whole one.
            counts &= rewards.accuracy > 0
        found: Floats = g2rpo.length_reward(lengths.astype(np.float32), thresholds, right=counts)
        return found


class LengthControl:
    """The length target of each task, fixed or calibrated from the right responses.

    Parameters
    ----------
    config : TrainConfig
        With the sections data, rollout and length; tasks are named.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> control = LengthControl(load_config(settings=["data.tasks=[ocr]"]))
    >>> control.thresholds, control.is_rewarding
    (array([[ 0.,  0., 10., 20.]]), True)
    """

    def __init__(self, config: TrainConfig) -> None:
        self._options = config.length
        self._names = config.data.tasks
        limit_of = config.rollout.limit_of
        targets = [self._options.target_of(task, limit_of(task)) for task in self._names]
        rows = [target.thresholds if target else (np.nan,) * 4 for target in targets]
        #: Minimum, low, high and maximum of each task in tokens, (num_tasks, 4); NaN for none.
        self.thresholds: Doubles = np.asarray(rows, np.float64)
        self._steps = 0

    @property
    def is_rewarding(self) -> bool:
        """Whether lengths are rewarded; they are not during the warm-up of the calibration."""
        options = self._options
        return not options.calibrate or self._steps >= options.calibration.warmup_steps

    def observe(
        self,
        lengths: npt.NDArray[Any],
        accuracy: npt.NDArray[Any],
        tasks: npt.NDArray[np.integer[Any]],
    ) -> None:
        """Calibrate the targets with the responses of a step.

        Parameters
        ----------
        lengths : array (N,)
            In tokens.
        accuracy : array (N,)
            A target follows the responses with an accuracy above 0 and not below the mean of their
            task: with graded rewards nearly every response has some accuracy.
        tasks : array (N,)
            Numbers of the tasks.
        """
        if not self._options.calibrate or self._options.mode == "off":
            return
        accuracy = np.nan_to_num(accuracy.astype(np.float64))
        right = accuracy > 0
        for task in np.unique(tasks):
            right &= (tasks != task) | (accuracy >= accuracy[tasks == task].mean())
        options = self._options.calibration
        self.thresholds = g2rpo.calibrate_lengths(
            self.thresholds,
            lengths.astype(np.float64),
            right,
            tasks,
            **options.model_dump(exclude={"warmup_steps"}),
        )
        self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Return ``length_target/low/<task>`` and ``…/high/<task>`` of the tasks with a target."""
        if self._options.mode == "off":
            return {}
        return {
            f"length_target/{name}/{task}": float(row[column])
            for task, row in zip(self._names, self.thresholds, strict=True)
            if not np.isnan(row[0])
            for name, column in (("low", 1), ("high", 2))
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a JSON file; empty if it follows from the configuration."""
        if not self._options.calibrate:
            return {}
        # As text: JSON has no infinity, and the shortest text of a number is exact.
        return {"steps": self._steps, "targets": self.thresholds.astype(str).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from the result of ``state_dict``."""
        if state:
            self._steps = state["steps"]
            self.thresholds = np.asarray(state["targets"], np.float64)


class AdaptiveWeights:
    """One weight for each task, fixed by the configuration or adapted from step to step.

    Parameters
    ----------
    name : str
        Name of the metric.
    tasks : sequence of str
        Names of the tasks.
    values : sequence of float
        The weights at the start of the run.
    is_adapted : bool
        Whether they change during the run, so that a checkpoint must hold them.

    Examples
    --------
    >>> weights = AdaptiveWeights("task_weight", ["ocr"], [1.0], is_adapted=True)
    >>> weights.values = np.asarray([0.5])
    >>> weights.metrics(), weights.state_dict()
    ({'task_weight/ocr': 0.5}, {'weights': [0.5]})
    """

    def __init__(
        self, name: str, tasks: Sequence[str], values: Sequence[float], *, is_adapted: bool
    ) -> None:
        self.values: Doubles = np.asarray(values, np.float64)
        self.is_adapted = is_adapted
        self._name = name
        self._tasks = tasks

    def metrics(self) -> dict[str, float]:
        """Return ``<name>/<task>`` of every task."""
        weights = zip(self._tasks, self.values.tolist(), strict=True)
        return {f"{self._name}/{task}": weight for task, weight in weights}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a JSON file; empty if it follows from the configuration."""
        return {"weights": self.values.tolist()} if self.is_adapted else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from the result of ``state_dict``."""
        if state:
            self.values = np.asarray(state["weights"], np.float64)
