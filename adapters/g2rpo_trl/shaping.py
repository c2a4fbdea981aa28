"""From TRL's rollouts to advantages: the core's :class:`g2rpo.Shaping`, configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo import Advantages
from g2rpo._suggest import unknown_name

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


class Shaping(g2rpo.Shaping):
    """The core's shaping of TRL's rollouts.

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
        super().__init__(config.shaping_options(tasks, reward_weights))
        self._right = None
        if (name := config.length_only_right) is not None:
            if name not in reward_names:
                text = unknown_name("reward function", name, reward_names)
                raise ValueError(f"length_only_right: {text}")
            self._right = list(reward_names).index(name)
        if self.options.shapes_length and "length" in reward_names:
            raise ValueError(
                "a reward function must not be called 'length', the name of the length reward in "
                "the metrics; rename it, or set length_mode='off'"
            )

    def __call__(self, rollouts: Rollouts, *, training: bool) -> Advantages:
        """Return the weighted advantages of a batch; without training nothing is remembered."""
        rewards, tasks = rollouts.rewards, rollouts.tasks
        return self.advantages(
            rewards,
            rollouts.num_generations,
            tasks,
            lengths=rollouts.lengths,
            accuracy=None if self._right is None else rewards[:, self._right],
            update=training,
        ).weighted(tasks)
