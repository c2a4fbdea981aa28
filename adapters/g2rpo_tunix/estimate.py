"""From tunix's rollouts to advantages: the core's :class:`g2rpo.Shaping`, configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo import Advantages
from g2rpo._suggest import unknown_name

from .handover import Rollouts

if TYPE_CHECKING:
    from .config import G2RPOConfig


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


class Shaping(g2rpo.Shaping):
    """The core's shaping of tunix's rollouts.

    Parameters
    ----------
    config : G2RPOConfig
        Tasks, estimator, weights and length targets.
    names : list of str
        Names of the reward functions, in order.
    """

    def __init__(self, config: G2RPOConfig, names: list[str]) -> None:
        super().__init__(config.shaping_options())
        weights = config.reward_weights
        if weights is not None and len(weights) != len(names):
            raise ValueError(
                f"reward_weights must have {len(names)} weights, one for each of "
                f"{', '.join(names)}, got {len(weights)}"
            )
        self._right: int | None = None
        if config.length_only_right is not None:
            if config.length_only_right not in names:
                text = unknown_name("reward function", config.length_only_right, names)
                raise ValueError(f"length_only_right: {text}")
            self._right = names.index(config.length_only_right)

    def __call__(
        self, rollouts: Rollouts, lengths: npt.NDArray[np.int64] | None, num_generations: int
    ) -> Advantages:
        """Return the weighted advantages of N rollouts whose responses have so many tokens."""
        rewards: Any = rollouts.rewards
        if lengths is None and self.options.uses_lengths:
            raise RuntimeError(
                f"length shaping and the estimator {self.options.estimator!r} need the rollouts' "
                "lengths in tokens: train with G2RPOLearner"
            )
        of_functions = rewards.reshape(len(rewards), -1)
        return self.advantages(
            rewards,
            group_size(len(rewards), num_generations),
            rollouts.tasks,
            lengths=lengths,
            accuracy=None if self._right is None else of_functions[:, self._right],
            update=rollouts.training,
        ).weighted(rollouts.tasks)
