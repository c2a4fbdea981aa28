"""A learner that says after every step what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..learner import G2RPOLearner, Mode


class SteppingLearner(G2RPOLearner):
    """Calls a function after every step with its number, its metrics and its rollouts.

    What that function raises ends the run.

    Parameters
    ----------
    on_step : callable
        ``on_step(step, metrics, example)``, the step from 1.
    *args, **options
        As for :class:`~g2rpo_tunix.G2RPOLearner`.
    """

    def __init__(self, on_step: Callable[..., None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._on_step = on_step
        self._example: tuple[Any, ...] = ()
        self._seconds_sampled = 0.0

    def _generate_and_compute_advantage(self, training_input: Any, mode: Any = Mode.TRAIN) -> Any:
        started = time.monotonic()
        example = super()._generate_and_compute_advantage(training_input, mode)
        self._seconds_sampled = time.monotonic() - started
        self._example = (training_input, example)
        return example

    def _run_global_step(self, *args: Any) -> None:
        started = time.monotonic()
        super()._run_global_step(*args)
        seconds = time.monotonic() - started
        cluster = self.rl_cluster
        # Where tunix keeps the numbers of the step that is just done, before it logs them.
        trained = cluster.actor_trainer._prev_buffered_train_metrics
        metrics = combined(cluster._buffered_train_metrics[-1].metrics)
        metrics |= combined(trained.additional_metrics) | {"loss": float(trained.loss)}
        metrics |= {
            "time/rollout": self._seconds_sampled,
            "time/update": seconds - self._seconds_sampled,
            "step_time": seconds,
        }
        self._on_step(cluster.actor_trainer.train_steps, metrics, *self._example)


def combined(buffered: dict[str, tuple[list[Any], Any]]) -> dict[str, float]:
    """Return the numbers among buffered metrics, each as tunix would log it.

    Examples
    --------
    >>> combined({"reward": ([1.0, 2.0], np.mean), "prompts": (["a"], None)})
    {'reward': 1.5}
    """
    return {
        name: float(operation(np.asarray([np.asarray(value) for value in values])))
        for name, (values, operation) in buffered.items()
        if operation is not None
    }
