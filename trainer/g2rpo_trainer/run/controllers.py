"""What steers a run from step to step: each task's length target, entropy weight and weight.

They hold a few numbers a task, on NumPy, and go into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo_trainer.config import TrainConfig

Floats = npt.NDArray[np.float64]


class LengthControl:
    """The length target of every task, as described or calibrated from the right responses.

    Parameters
    ----------
    config : TrainConfig
        Its data, rollout and length sections; the tasks are named.

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
        self.thresholds: Floats = np.asarray(rows, np.float64)
        self._steps = 0

    @property
    def is_rewarding(self) -> bool:
        """Whether lengths are rewarded: not while the targets are still being found."""
        options = self._options
        return not options.calibrate or self._steps >= options.calibration.warmup_steps

    def observe(
        self,
        lengths: npt.NDArray[Any],
        accuracy: npt.NDArray[Any],
        tasks: npt.NDArray[np.integer[Any]],
    ) -> None:
        """Take a step's responses into account.

        Parameters
        ----------
        lengths : array (N,)
            In tokens.
        accuracy : array (N,)
            The responses that a target follows are those with an accuracy above 0 and not below
            their task's mean: with graded rewards nearly every response gets something.
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
        """Return ``length_target/low/<task>`` and ``…/high/<task>`` of the tasks that have one."""
        if self._options.mode == "off":
            return {}
        return {
            f"length_target/{name}/{task}": float(row[column])
            for task, row in zip(self._names, self.thresholds, strict=True)
            if not np.isnan(row[0])
            for name, column in (("low", 1), ("high", 2))
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it; nothing if it follows from the configuration."""
        if not self._options.calibrate:
            return {}
        # As text: JSON has no infinity, and a number's shortest text is exact.
        return {"steps": self._steps, "targets": self.thresholds.astype(str).tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if state:
            self._steps = state["steps"]
            self.thresholds = np.asarray(state["targets"], np.float64)


class EntropyControl:
    """The weight of every task's entropy term, fixed or following its entropy.

    Parameters
    ----------
    config : TrainConfig
        Its data and entropy sections; the tasks are named.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> control = EntropyControl(
    ...     load_config(settings=["data.tasks=[ocr]", "entropy.control=adaptive"])
    ... )
    >>> control.observe(np.asarray([1.1]), np.asarray([True]))
    >>> control.weights.round(6)
    array([0.03])
    """

    def __init__(self, config: TrainConfig) -> None:
        self._options = options = config.entropy
        self._names = names = config.data.tasks
        bounds = np.asarray([options.of(task) for task in names], np.float64).reshape(-1, 2)
        self._low, self._high = bounds[:, 0], bounds[:, 1]
        #: Weight of each task's entropy term, (num_tasks,).
        self.weights: Floats = np.asarray([options.weight_of(task) for task in names], np.float64)

    def observe(self, entropies: npt.NDArray[Any], present: npt.NDArray[np.bool_]) -> None:
        """Take a step's entropies into account.

        Parameters
        ----------
        entropies : array (num_tasks,)
            Mean token entropy of each task, in nats.
        present : array (num_tasks,), bool
            Which tasks the step has.
        """
        if self._options.control == "fixed":
            return
        self.weights = g2rpo.adapt_entropy_weights(
            self.weights,
            entropies.astype(np.float64),
            self._low,
            self._high,
            present,
            learning_rate=self._options.control_rate,
            maximum=self._options.max_weight,
        )

    def steered(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration with the weights as they are now, for the update to read."""
        if self._options.control == "fixed":
            return config
        weights = dict(zip(self._names, self.weights.tolist(), strict=True))
        entropy = config.entropy.model_copy(update={"weights": weights})
        return config.model_copy(update={"entropy": entropy})

    def metrics(self) -> dict[str, float]:
        """Return ``entropy_weight/<task>`` of every task."""
        weights = self.weights.tolist()
        return {
            f"entropy_weight/{task}": weight
            for task, weight in zip(self._names, weights, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it; nothing if it follows from the configuration."""
        return {} if self._options.control == "fixed" else {"weights": self.weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if state:
            self.weights = np.asarray(state["weights"], np.float64)


class TaskWeightControl:
    """The factor of every task's advantages, fixed or following the tasks' gradient norms.

    Parameters
    ----------
    config : TrainConfig
        Its data and task_weights sections; the tasks are named.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> control = TaskWeightControl(
    ...     load_config(settings=["data.tasks=[ocr, maths]", "task_weights.adapt=10"])
    ... )
    >>> control.observe({"ocr": 4.0, "maths": 1.0}, step=10)
    >>> control.weights.round(4)
    array([0.7071, 1.4142])
    """

    def __init__(self, config: TrainConfig) -> None:
        self._options = config.task_weights
        self._names = config.data.tasks
        weights = [self._options.weights.get(task, 1.0) for task in self._names]
        self.weights: Floats = np.asarray(weights, np.float64)

    def observe(self, norms: Mapping[str, float], step: int) -> None:
        """Take the norms of the tasks' gradients into account, if an adaptation is due.

        Parameters
        ----------
        norms : mapping of str to float
            Norm of each measured task's own gradient, with its weight as it is.
        step : int
            From 1.
        """
        options = self._options
        if not options.adapt or step % options.adapt:
            return
        measured = [norms.get(task, np.nan) for task in self._names]
        self.weights = g2rpo.adapt_task_weights(
            np.asarray(measured, np.float64),
            self.weights,
            rate=options.rate,
            low=options.low,
            high=options.high,
        )

    def metrics(self) -> dict[str, float]:
        """Return ``task_weight/<task>`` of every task; nothing if all are 1 for good."""
        if not self._options.adapt and not self._options.weights:
            return {}
        weights = self.weights.tolist()
        return {f"task_weight/{task}": w for task, w in zip(self._names, weights, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it; nothing if it follows from the configuration."""
        return {"weights": self.weights.tolist()} if self._options.adapt else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if state:
            self.weights = np.asarray(state["weights"], np.float64)
