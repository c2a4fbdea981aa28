"""tunix's reward managers, with the task labels and the rewards' components kept for later."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from tunix.rl.function_registry import register_reward_manager
from tunix.rl.reward_manager import AgenticSequenceRewardManager, SequenceRewardManager

from g2rpo.shaping import total_rewards

from .config import G2RPOConfig
from .estimate import Shaping
from .handover import Rollouts, handover
from .labels import Codes, task_codes


class _Kept(threading.local):
    rewards: Any = None


class _KeepsComponents(SequenceRewardManager):
    """Keeps the components of the rewards, for both managers."""

    def __init__(self, reward_fns: Any, algo_config: Any, **options: Any) -> None:
        super().__init__(reward_fns, algo_config, **options)
        self._kept = _Kept()

    def _prepare_log_metrics(self, prompts: Any, completions: Any, rewards: Any) -> dict[str, Any]:
        # The one place where tunix shows the components (N, K) before it adds them up.
        self._kept.rewards = rewards
        metrics: dict[str, Any] = super()._prepare_log_metrics(prompts, completions, rewards)
        return metrics

    def _tasks(self, columns: dict[str, Any]) -> Codes | None:
        names = getattr(self.algo_config, "tasks", None)
        column = getattr(self.algo_config, "task_column", "task")
        if names is not None and not names:
            return None
        if column not in columns:
            if names is None:  # tunix's own configuration: a batch without labels is one task
                return None
            raise ValueError(
                f"the dataset must have the column {column!r} with each prompt's task, "
                f"it has: prompts, {', '.join(sorted(columns))}"
            )
        return task_codes(columns[column], names or (), column)


@register_reward_manager("g2rpo")
class TaskRewardManager(_KeepsComponents):
    """tunix's ``sequence-level`` manager; a reward that no function gives stays absent.

    A reward function returns NaN where it does not apply. tunix counts that as 0; here a rollout
    without any reward is NaN, which takes no part in its group's ranking and gets advantage 0.
    """

    def __init__(self, reward_fns: Any, algo_config: Any, **options: Any) -> None:
        super().__init__(reward_fns, algo_config, **options)
        self.shaping: Shaping | None = None
        if isinstance(algo_config, G2RPOConfig):
            self.shaping = Shaping(algo_config, [each.__name__ for each in self.reward_fns])

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> dict[str, Any]:
        """Score N responses, and leave their components and tasks for the estimator."""
        tasks = self._tasks(columns)
        result: dict[str, Any] = super().__call__(prompts, completions, **columns)
        rewards, self._kept.rewards = self._kept.rewards, None
        handover.rollouts = Rollouts(rewards, tasks, columns.get("mode") != "eval", self)
        weights = self.shaping.options.reward_weights if self.shaping else None
        return result | {"rewards": total_rewards(np.asarray(rewards), weights)}


@register_reward_manager("g2rpo-agentic")
class AgenticTaskRewardManager(_KeepsComponents, AgenticSequenceRewardManager):
    """tunix's ``agentic-sequence-level`` manager, for :class:`~g2rpo_tunix.AgenticG2RPOLearner`."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> dict[str, Any]:
        """Score the N responses to one prompt, and leave their tasks for the estimator."""
        tasks = self._tasks(columns)
        result: dict[str, Any] = super().__call__(prompts, completions, **columns)
        rewards = np.asarray(result["rewards"], dtype=np.float64)
        components, self._kept.rewards = self._kept.rewards, None
        if components is not None:
            rewards = np.where(np.isnan(components).all(axis=1), np.nan, rewards)
        handover.rollouts = Rollouts(rewards, tasks, columns.get("mode") != "eval", self)
        return result | {"rewards": rewards}
