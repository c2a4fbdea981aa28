"""From a run's rewards and lengths to advantages: the core's :class:`g2rpo.Shaping`, configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo import Advantages, LengthCalibration, ShapingOptions
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.scoring import Rewards, reward_weights

__all__ = ["Advantages", "Shaping", "shaping_options"]

Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]


class Shaping(g2rpo.Shaping):
    """The core's shaping, for scored responses.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> shaping = Shaping(shaping_options(load_config(), ["ocr"]))
    >>> reward = np.asarray([0.0, 1.0], np.float32)
    >>> zeros = np.zeros(2, np.int64)
    >>> rewards = Rewards(reward, reward, reward, reward)
    >>> shaping(rewards, lengths=zeros + 7, groups=zeros, tasks=zeros).policy
    array([-1.,  1.], dtype=float32)
    """

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
        lengths, groups, tasks, absent
            As in :meth:`g2rpo.Shaping.advantages`.
        """
        values = rewards.reward
        if self.options.reward_weights is not None:
            parts = (rewards.accuracy, rewards.format, rewards.structure)
            values = np.stack(parts, axis=1)
        return self.advantages(
            values, groups, tasks, lengths=lengths, accuracy=rewards.accuracy, absent=absent
        )


def shaping_options(config: TrainConfig, tasks: Sequence[str]) -> ShapingOptions:
    """Return the options of the core's shaping that a configuration asks for these tasks.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> config = load_config("text", {"entropy.bounds": {"ocr": [0.1, 0.4]}})
    >>> shaping_options(config, ["ocr"]).entropy_bounds
    {'ocr': (0.1, 0.4)}
    """
    estimator, length, entropy = config.estimator, config.length, config.entropy
    by_component = estimator.decoupled or estimator.name == "gdpo"
    weights = reward_weights(config.rewards.weights, config.data.source)
    targets = {task: length.target_of(task, config.rollout.limit_of(task)) for task in tasks}
    calibration = LengthCalibration(**length.calibration.model_dump())
    factors = config.task_weights

    def of_run(by_task: dict[str, Any]) -> dict[str, Any]:
        # A configuration may also name tasks that the run leaves out.
        return {task: by_task[task] for task in tasks if task in by_task}

    return ShapingOptions(
        tasks=tasks,
        estimator=estimator.name,
        estimator_options=estimator.keywords,
        reward_weights=weights if by_component else None,
        length_mode=length.mode,
        length_weight=length.weight,
        length_targets={task: target for task, target in targets.items() if target is not None},
        length_only_right=length.only_right,
        length_calibration=calibration if length.calibrate else None,
        entropy_weight=entropy.weight,
        entropy_weights=of_run(entropy.weights),
        entropy_low=entropy.low,
        entropy_high=entropy.high,
        entropy_bounds=of_run(entropy.bounds),
        entropy_control=entropy.control,
        entropy_control_rate=entropy.control_rate,
        entropy_max_weight=entropy.max_weight,
        task_weights=of_run(factors.weights),
        task_weights_adapt=factors.adapt,
        task_weights_rate=factors.rate,
        task_weights_low=factors.low,
        task_weights_high=factors.high,
    )
