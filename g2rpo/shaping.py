"""From rewards and lengths to advantages, with the state that lives from step to step.

On the host, in NumPy: a batch has a few thousand numbers. Arrays of other libraries are copied
there. Where several processes train, each computes the same from the rollouts of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from g2rpo._checks import require_shape
from g2rpo._components import weighted_rewards, weights_if_components
from g2rpo._libraries import to_numpy
from g2rpo._step_arrays import (
    Doubles,
    Flags,
    Floats,
    Labels,
    floats,
    labels_of_tasks,
    right_responses,
    where_present,
    with_component,
)
from g2rpo._typing import Array, Groups
from g2rpo.advantages import (
    ESTIMATORS,
    EMAState,
    ema_grpo_advantages,
    gaussian_advantages,
    takes_components,
    takes_lengths,
)
from g2rpo.calibration import calibrate_lengths
from g2rpo.entropy import adapt_entropy_weights
from g2rpo.length import length_reward
from g2rpo.shaping_options import LengthCalibration, ShapingOptions
from g2rpo.task_weights import adapt_task_weights, weigh_tasks


@dataclass(frozen=True)
class Advantages:
    """The advantages of N rollouts, on the host.

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

    def weighted(self, tasks: Labels | None) -> Advantages:
        """Return the advantages times the weights of their tasks (N,), as a loss takes them."""
        labels = np.zeros(len(self.policy), np.int64) if tasks is None else tasks
        policy = weigh_tasks(self.policy, labels, self.task_weights)
        length = self.length
        if length is not None:
            length = weigh_tasks(length, labels, self.task_weights)
        return replace(self, policy=policy, length=length)


class Shaping:
    """Turns rewards and lengths into advantages, and adapts targets and weights between steps.

    Parameters
    ----------
    options : ShapingOptions
        Estimator, tasks, length, entropy and task weights.

    Attributes
    ----------
    options : ShapingOptions
        As given; they never change.
    length_thresholds : array (num_tasks, 4)
        Minimum, low, high and maximum of each task's length in tokens; NaN for none.
    entropy_bounds : array (num_tasks, 2)
        In nats.
    entropy_weights, task_weights : array (num_tasks,)
        As they are now.

    Notes
    -----
    ``state_dict`` returns all that adapts, and ``load_state_dict`` restores it: the moments of
    ``ema-grpo``, calibrated length targets, adaptive entropy weights and task weights.

    Examples
    --------
    >>> import g2rpo
    >>> options = g2rpo.ShapingOptions(
    ...     tasks=["maths", "ocr"],
    ...     length_mode="reward",
    ...     length_targets={"ocr": g2rpo.LengthTarget(0, 0, 10, 20)},
    ... )
    >>> shaping = Shaping(options)
    >>> rewards, lengths = np.asarray([0.0, 1.0, 1.0, 1.0]), np.asarray([300, 200, 8, 40])
    >>> found = shaping.advantages(
    ...     rewards, groups=2, tasks=np.asarray([0, 0, 1, 1]), lengths=lengths, accuracy=rewards
    ... )
    >>> found.policy, found.length_reward
    (array([-1.,  1.,  1., -1.]), array([nan, nan,  1.,  0.]))
    """

    def __init__(self, options: ShapingOptions) -> None:
        self.options = options
        unset = (np.nan,) * 4
        thresholds = {task: each.thresholds for task, each in options.length_targets.items()}
        self.length_thresholds: Doubles = np.asarray(
            options.of_tasks(thresholds, unset), np.float64
        )
        common = (options.entropy_low, options.entropy_high)
        self.entropy_bounds: Doubles = np.asarray(
            options.of_tasks(options.entropy_bounds, common), np.float64
        )
        self.entropy_weights: Doubles = np.asarray(
            options.of_tasks(options.entropy_weights, options.entropy_weight), np.float64
        )
        self.task_weights: Doubles = np.asarray(
            options.of_tasks(options.task_weights, 1.0), np.float64
        )
        self._calibrations = 0
        self._ema: EMAState | None = None
        if options.estimator == "ema-grpo":
            self._ema = EMAState.start(len(options.tasks), np.zeros(1))

    def advantages(
        self,
        rewards: Array,
        groups: Groups,
        tasks: Array | None = None,
        *,
        lengths: Array | None = None,
        accuracy: Array | None = None,
        absent: Array | None = None,
        update: bool = True,
    ) -> Advantages:
        """Return the advantages of a step's N rollouts; called once a step.

        Parameters
        ----------
        rewards : array
            Shape (N,), or (N, K) for K components, in reward units. NaN is absent; a rollout
            without any reward gets advantage 0, whatever its length.
        groups : array or int
            Integer prompt labels, shape (N,); or n, for groups of n consecutive rollouts.
        tasks : array, optional
            Integer labels, shape (N,), the places of the tasks in ``options.tasks``; all of the
            first task by default.
        lengths : array, optional
            Tokens of each response, shape (N,); needed if ``options.uses_lengths``.
        accuracy : array, optional
            Shape (N,), above 0 where a response is right; NaN is absent. Needed for length shaping
            with ``length_only_right`` or ``length_calibration``.
        absent : array, optional
            bool, shape (N,): responses that enter no statistic; their advantages are 0.
        update : bool, optional
            False leaves the state as it is, for evaluation.

        Returns
        -------
        Advantages
            In the floating dtype of ``rewards``, and not yet multiplied by the task weights.

        Raises
        ------
        TypeError
            If an argument is of a wrong type.
        ValueError
            If ``lengths`` or ``accuracy`` is missing, a task label has no task, or shapes differ.
        """
        options, rewards = self.options, floats(rewards)
        if lengths is None and options.uses_lengths:
            raise ValueError(
                "lengths must be given, in tokens: length shaping or the estimator "
                f"{options.estimator!r} takes them"
            )
        if accuracy is None and options.uses_accuracy:
            raise ValueError(
                "accuracy must be given: only the lengths of right responses count, or targets "
                "follow them"
            )
        by_name = {"lengths": lengths, "accuracy": accuracy, "absent": absent}
        for name, array in by_name.items():
            if array is not None:
                require_shape(name, array, (len(rewards),))
        labels = labels_of_tasks(tasks, len(rewards), options.tasks)
        groups = groups if isinstance(groups, int | np.integer) else to_numpy(groups)
        tokens: Any = None if lengths is None else to_numpy(lengths)
        there = np.ones(len(rewards), bool) if absent is None else ~to_numpy(absent)
        rewards = where_present(there, rewards)
        length, reward = None, None
        if options.shapes_length:
            known = there if accuracy is None else to_numpy(accuracy)
            right = where_present(there, known.astype(np.float64))
            reward = self._length_reward(tokens, right, labels, there, rewards.dtype)
            if update and options.length_calibration is not None:
                self._calibrate(tokens, right, labels, options.length_calibration)
        if reward is not None and options.length_mode == "term":
            length = gaussian_advantages(reward, groups, labels)
        in_reward = reward if options.length_mode == "reward" else None
        policy = self._estimate(rewards, in_reward, tokens, groups, labels, update)
        return Advantages(policy, length, reward, self.task_weights)

    def adapt_entropy_weights(self, means: Array, present: Array) -> None:
        """Adapt the entropy weights to the entropies of a step, if they are to adapt.

        Parameters
        ----------
        means : array
            Mean token entropy of each task in nats, shape (num_tasks,).
        present : array
            bool, shape (num_tasks,): tasks that the step has; the others keep their weight.
        """
        if self.options.entropy_control == "fixed":
            return
        self.entropy_weights = adapt_entropy_weights(
            self.entropy_weights,
            to_numpy(means).astype(np.float64),
            self.entropy_bounds[:, 0],
            self.entropy_bounds[:, 1],
            to_numpy(present),
            learning_rate=self.options.entropy_control_rate,
            maximum=self.options.entropy_max_weight,
        )

    def entropy_pulls(self, means: Array, present: Array) -> bool:
        """Return whether the entropy term of a step has a gradient.

        It has none while all tasks are inside of their bounds. A trainer can then spare the
        backward pass the gradient of entropies, which would be zeros.

        Parameters
        ----------
        means : array
            Mean token entropies that tell the side, in nats, shape (num_tasks,).
        present : array
            bool, shape (num_tasks,): tasks that the step has.

        Returns
        -------
        bool
            True if a present task with a weight is out of its bounds.
        """
        low, high = self.entropy_bounds.T
        means = to_numpy(means)
        is_outside = (means < low) | (means > high)
        return bool((is_outside & to_numpy(present) & (self.entropy_weights > 0)).any())

    def adapt_task_weights(self, norms: Mapping[str, float], step: int) -> None:
        """Adapt the task weights of later steps, if an adaptation is due after this step.

        Parameters
        ----------
        norms : mapping of str to float
            Norm of each measured task's own gradient, under its current weight.
        step : int
            From 1.
        """
        options = self.options
        if not options.task_weights_adapt or step % options.task_weights_adapt:
            return
        self.task_weights = adapt_task_weights(
            np.asarray(options.of_tasks(norms, np.nan), np.float64),
            self.task_weights,
            **options.task_weights_limits,
        )

    def metrics(self) -> dict[str, float]:
        """Return the length target, entropy weight and task weight of each task.

        They are ``length_target/low/<task>`` and ``length_target/high/<task>`` of tasks with a
        target, ``entropy_weight/<task>``, and ``task_weight/<task>`` unless all of them stay at 1.
        """
        options, columns = self.options, {}
        if options.shapes_length:
            columns["length_target/low"] = self.length_thresholds[:, 1]
            columns["length_target/high"] = self.length_thresholds[:, 2]
        columns["entropy_weight"] = self.entropy_weights
        if options.task_weights or options.task_weights_adapt:
            columns["task_weight"] = self.task_weights
        return {
            f"{name}/{task}": float(value)
            for name, column in columns.items()
            for task, value in zip(options.tasks, column, strict=True)
            if not np.isnan(value)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it; empty if all of it follows from the options."""
        state: dict[str, Any] = {}
        if self._ema is not None:
            state["ema"] = self._ema.to_json()
        if self.options.shapes_length and self.options.length_calibration is not None:
            # As text: JSON has no infinity, and the shortest text of a number is exact.
            targets = self.length_thresholds.astype(str).tolist()
            state["length"] = {"steps": self._calibrations, "targets": targets}
        if self.options.entropy_control == "adaptive":
            state["entropy_weights"] = self.entropy_weights.tolist()
        if self.options.task_weights_adapt:
            state["task_weights"] = self.task_weights.tolist()
        return {"tasks": list(self.options.tasks), **state} if state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises
        ------
        ValueError
            If it is the state of other tasks, or of options that keep something else.
        """
        mine = self.state_dict()
        if state.keys() != mine.keys() or state.get("tasks") != mine.get("tasks"):
            raise ValueError(
                f"the checkpoint's state must be that of the tasks {mine.get('tasks', [])} with "
                f"{_parts(mine)}, got {state.get('tasks', [])} with {_parts(state)}; resume with "
                "the options and tasks that it was written with"
            )
        if self._ema is not None:
            self._ema = EMAState.from_json(state["ema"], self._ema.mean)
        if "length" in state:
            self._calibrations = state["length"]["steps"]
            self.length_thresholds = np.asarray(state["length"]["targets"], np.float64)
        for name in ("entropy_weights", "task_weights"):
            if name in state:
                setattr(self, name, np.asarray(state[name], np.float64))

    def _length_reward(
        self, lengths: Labels, accuracy: Doubles, tasks: Labels, there: Flags, dtype: Any
    ) -> Floats:
        calibration = self.options.length_calibration
        thresholds = self.length_thresholds.astype(dtype)[tasks]
        # NaN is no reward, and takes no part in any ranking.
        counts = there & ~np.isnan(thresholds).any(axis=1)
        if calibration is not None:
            counts &= self._calibrations >= calibration.warmup_steps
        if self.options.length_only_right:
            # Without this gate a policy learns that half an answer is shorter than a whole one.
            counts &= accuracy > 0
        found: Floats = length_reward(lengths.astype(dtype), thresholds, right=counts)
        return found

    def _calibrate(
        self, lengths: Labels, accuracy: Doubles, tasks: Labels, calibration: LengthCalibration
    ) -> None:
        self.length_thresholds = calibrate_lengths(
            self.length_thresholds,
            lengths.astype(np.float64),
            right_responses(accuracy, tasks),
            tasks,
            **calibration.keywords,
        )
        self._calibrations += 1

    def _estimate(
        self,
        rewards: Floats,
        in_reward: Floats | None,
        lengths: Labels | None,
        groups: Groups,
        tasks: Labels,
        update: bool,
    ) -> Floats:
        options = self.options
        rewards, weights = with_component(
            rewards, options.reward_weights, in_reward, options.length_weight
        )
        keywords = dict(options.estimator_options)
        advantages: Floats
        if self._ema is not None:
            total = total_rewards(rewards, weights)
            mean, variance = (each.astype(total.dtype) for each in self._ema[:2])
            state = EMAState(mean, variance, self._ema.seen)
            advantages, state = ema_grpo_advantages(total, groups, tasks, state, **keywords)
            if update:
                self._ema = state
            return advantages
        estimator = ESTIMATORS[self.options.estimator]
        if takes_lengths(estimator):
            keywords["lengths"] = lengths
        if weights is not None and takes_components(estimator):
            keywords["component_weights"] = weights
        else:
            rewards = total_rewards(rewards, weights)
        advantages = estimator(rewards, groups, tasks, **keywords)
        return advantages


def total_rewards(rewards: Floats, weights: Sequence[float] | None = None) -> Floats:
    """Return the weighted sums (N,) of rewards (N, K); NaN where all components are absent.

    Examples
    --------
    >>> total_rewards(np.asarray([[1.0, np.nan], [np.nan, np.nan]]), [0.5, 0.5])
    array([0.5, nan])
    """
    of_components = weights_if_components(np, weights, rewards)
    if of_components is None:
        return rewards
    total: Floats = weighted_rewards(np, rewards, of_components)[0]
    return total


def _parts(state: Mapping[str, Any]) -> str:
    return ", ".join(name for name in state if name != "tasks") or "nothing"
