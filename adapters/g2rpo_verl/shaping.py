"""From a batch of rollouts to advantages, with what has to be remembered from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo._components import weighted_rewards
from g2rpo._suggest import unknown_name
from g2rpo.advantages import takes_lengths

from .options import SECTION, Options, length_target

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]


class Rollouts(NamedTuple):
    """N rollouts, in any order.

    Attributes
    ----------
    rewards : numpy.ndarray
        (N,), in reward units; NaN is absent.
    lengths, groups, tasks : numpy.ndarray
        Integers (N,): tokens, number of the prompt, number of the task.
    components : mapping
        Components of the reward by name, (N,) each.
    """

    rewards: Floats
    lengths: Labels
    groups: Labels
    tasks: Labels | None
    components: Mapping[str, Floats]


class Advantages(NamedTuple):
    """Advantages (N,) of the rewards and of the lengths, if any, and the length reward (N,)."""

    policy: Floats
    length: Floats | None = None
    length_reward: Floats | None = None


def task_codes(labels: Sequence[Any], options: Options) -> tuple[Labels, tuple[str, ...]]:
    """Return the number of each label's task, and the names of all tasks.

    Raises
    ------
    TypeError
        If a label is no string.
    ValueError
        If a label is none of the tasks that ``options`` list.

    Examples
    --------
    >>> task_codes(["ocr", "maths", "ocr"], Options())
    (array([1, 0, 1]), ('maths', 'ocr'))
    """
    column = options.task_column
    try:
        codes, names = g2rpo.encode_labels(list(labels))
    except TypeError as error:
        raise TypeError(
            f"column {column!r} must hold the names of tasks ({error}); write them as strings, or "
            f"name another column in {SECTION}.task_column"
        ) from None
    if not options.tasks:
        return codes, names
    for name in names:
        if name not in options.tasks:
            raise ValueError(
                f"column {column!r}: {unknown_name('task', name, options.tasks)}; "
                f"add it to {SECTION}.tasks"
            )
    numbers = np.asarray([options.tasks.index(name) for name in names], dtype=np.int64)
    return numbers[codes], tuple(options.tasks)


class Shaping:
    """Turns rollouts into advantages; carries EMA-GRPO's moments and adaptive entropy weights.

    Parameters
    ----------
    options : Options
        As :func:`~g2rpo_verl.options.read_options` returns them.
    longest : int
        Longest response in tokens, for targets that follow from it.
    """

    def __init__(self, options: Options, longest: int) -> None:
        self.options = options
        targets = {
            name: length_target(value, longest) for name, value in options.length.targets.items()
        }
        self._targets = g2rpo.LengthTargets(targets).table(options.tasks)
        self._has_target = np.asarray([name in targets for name in options.tasks], dtype=bool)
        own = options.entropy.weights
        weights = [own.get(name, options.entropy.weight) for name in options.tasks]
        self._entropy_weights = np.asarray(weights, dtype=np.float64)
        self._ema: g2rpo.EMAState | None = None
        if options.estimator.name == "ema-grpo":
            self._ema = g2rpo.EMAState.start(len(options.tasks), np.zeros(1))

    def __call__(self, rollouts: Rollouts) -> Advantages:
        """Return the advantages of a batch; called once a step."""
        options, length, length_reward = self.options, None, None
        if options.shapes_length:
            length_reward = self._length_reward(rollouts)
            if options.length.mode == "term":
                length = g2rpo.gaussian_advantages(length_reward, rollouts.groups, rollouts.tasks)
        in_reward = length_reward if options.length.mode == "reward" else None
        policy = self._estimate(rollouts, in_reward)
        if options.task_weights.weights:
            own = options.task_weights.weights
            weights = np.asarray([own.get(name, 1.0) for name in options.tasks])
            policy = g2rpo.weigh_tasks(policy, rollouts.tasks, weights)
            length = None if length is None else g2rpo.weigh_tasks(length, rollouts.tasks, weights)
        return Advantages(policy, length, length_reward)

    def entropy_shaping(
        self, means: Floats, present: Any, names: Sequence[str]
    ) -> dict[str, list[float]]:
        """Return each task's bounds and weight for this step, given its mean entropy in nats."""
        entropy = self.options.entropy
        bounds = np.asarray([entropy.bounds.get(n, [entropy.low, entropy.high]) for n in names])
        low, high = bounds.astype(np.float64).reshape(-1, 2).T
        weights = np.full(len(names), entropy.weight)
        if self.options.tasks:
            if entropy.control == "adaptive":
                self._entropy_weights = g2rpo.adapt_entropy_weights(
                    self._entropy_weights,
                    means.astype(np.float64),
                    low,
                    high,
                    np.asarray(present, dtype=bool),
                    learning_rate=entropy.control_rate,
                    maximum=entropy.max_weight,
                )
            weights = self._entropy_weights
        named = {"entropy_low": low, "entropy_high": high, "entropy_weight": weights}
        return {name: values.tolist() for name, values in named.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {
            "tasks": list(self.options.tasks),
            "ema": self._ema.to_json() if self._ema else None,
            "entropy_weights": self._entropy_weights.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises
        ------
        ValueError
            If the state is that of other tasks.
        """
        if self.remembers and state["tasks"] != list(self.options.tasks):
            raise ValueError(
                f"the checkpoint's state is that of the tasks {state['tasks']}, but {SECTION}.tasks"
                f" is {self.options.tasks}; list the same tasks in the same order"
            )
        if self._ema and state["ema"]:
            self._ema = g2rpo.EMAState.from_json(state["ema"], self._ema.mean)
        if self.options.entropy.control == "adaptive":
            self._entropy_weights = np.asarray(state["entropy_weights"], dtype=np.float64)

    @property
    def remembers(self) -> bool:
        """Whether a run without its state would not be the same run."""
        return self._ema is not None or self.options.entropy.control == "adaptive"

    def _estimate(self, rollouts: Rollouts, length_reward: Floats | None) -> Floats:
        estimator, keywords = self.options.estimator, self.options.estimator.keywords
        values, weights = rollouts.rewards, []
        if self.options.rewards.weights:
            weights = list(self.options.rewards.weights.values())
            columns = [rollouts.components[name] for name in self.options.rewards.weights]
            values = np.stack(columns, axis=1)
        if length_reward is not None:
            weights = [*(weights or [1.0]), self.options.length.weight]
            # A reward that is absent stays so.
            absent = np.isnan(values.reshape(len(values), -1)).all(axis=1)
            values = np.column_stack([values, np.where(absent, np.nan, length_reward)])
        if self._ema is not None:
            if weights:
                values, _ = weighted_rewards(np, values, np.asarray(weights))
            advantages, self._ema = g2rpo.ema_grpo_advantages(
                values, rollouts.groups, rollouts.tasks, self._ema, **keywords
            )
            return advantages
        if weights:
            keywords["component_weights"] = weights
        function = g2rpo.ESTIMATORS[estimator.name]
        if takes_lengths(function):
            keywords["lengths"] = rollouts.lengths
        found: Floats = function(values, rollouts.groups, rollouts.tasks, **keywords)
        return found

    def _length_reward(self, rollouts: Rollouts) -> Floats:
        right = None
        if self.options.length.only_right:
            right = rollouts.components["accuracy"] > 0
        lengths, tasks = rollouts.lengths.astype(np.float64), rollouts.tasks
        reward = g2rpo.length_reward(lengths, self._targets[tasks], right=right)
        # NaN is no reward, and takes no part in any ranking.
        return np.where(self._has_target[tasks], reward, np.nan)
