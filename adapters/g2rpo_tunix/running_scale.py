"""A running scale for each task, where an estimator never sees a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

import g2rpo

Floats = npt.NDArray[np.float64]


class RunningScale:
    r"""Gaussian advantages of one group at a time, over the running deviation of their task.

    .. math:: A = z / \sigma_{task}, \qquad
              \sigma^2_{task} \leftarrow d \, \sigma^2_{task} + (1 - d) \, \overline{z^2}

    with z the group's rewards matched to N(0, 1). It replaces the task stage ``"standardize"`` of
    :func:`g2rpo.gaussian_advantages`, which takes the deviation over the batch: sign, ties, the
    zero of groups without signal and each prompt's zero sum are the same, but a task's variance is
    1 in the long run only.

    Parameters
    ----------
    tasks : sequence of str
        Names of the tasks; empty for a single one.
    decay : float
        Share of the past, in [0, 1], each time a group with signal comes.
    minimum : float
        Smallest deviation.
    **options
        Options of :func:`g2rpo.gaussian_advantages`: ``ties``, ``resolution``.

    Raises
    ------
    ValueError
        If ``task_stage`` is among the options.

    Notes
    -----
    The first group of a task starts its scale. Groups without signal leave it as it is: half of
    all groups being without would otherwise make the advantages of the others larger.

    Examples
    --------
    >>> import numpy as np
    >>> scale, groups = RunningScale(), np.zeros(4, dtype=int)
    >>> scale(np.array([0.0, 0.0, 0.0, 1.0]), groups).round(4)
    array([-0.5774, -0.5774, -0.5774,  1.7321])
    >>> scale(np.array([1.0, 1.0, 1.0, 1.0]), groups)
    array([0., 0., 0., 0.])
    """

    def __init__(
        self,
        tasks: Sequence[str] = (),
        *,
        decay: float = 0.99,
        minimum: float = 1e-3,
        **options: Any,
    ) -> None:
        if "task_stage" in options:
            raise ValueError("task_stage must be left out: the running scale takes its place")
        self._tasks, self._options = tuple(tasks), options
        self._decay, self._minimum = decay, minimum
        self._state = g2rpo.EMAState.start(max(1, len(self._tasks)), np.zeros(1))
        self._lock = Lock()
        self(np.zeros(2), np.zeros(2, dtype=np.int64))  # raises here if an option is wrong

    def __call__(
        self, rewards: Floats, groups: Any, tasks: Any = None, /, *, update: bool = True
    ) -> Floats:
        """Return the advantages of N rollouts, of one group or of several.

        Parameters
        ----------
        rewards : numpy.ndarray
            (N,), in reward units; NaN is absent.
        groups : numpy.ndarray
            (N,), integer prompt labels.
        tasks : numpy.ndarray, optional
            (N,), numbers of tasks.
        update : bool
            False leaves the scale as it is, for evaluation.
        """
        if tasks is None:
            tasks = np.zeros(len(rewards), dtype=np.int64)
        z = g2rpo.gaussian_advantages(rewards, groups, task_stage=None, **self._options)
        with self._lock:
            advantages, state = g2rpo.ema_grpo_advantages(
                np.where(g2rpo.has_signal(z, groups), z, np.nan),
                groups,
                tasks,
                self._state,
                decay=self._decay,
                minimum_std=self._minimum,
                epsilon=0.0,
                outliers="keep",
            )
            if update:
                self._state = state
        return advantages

    @property
    def deviations(self) -> dict[str, float]:
        """The running deviation of each task that has been met."""
        names = self._tasks or ("all",)
        std = np.sqrt(self._state.variance)
        return {name: float(std[k]) for k, name in enumerate(names) if bool(self._state.seen[k])}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {"tasks": list(self._tasks), "scale": self._state.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises
        ------
        ValueError
            If the state is missing or that of other tasks.
        """
        if state.get("tasks") != list(self._tasks):
            raise ValueError(
                f"the checkpoint's state must be that of the tasks {list(self._tasks)}, "
                f"got {state.get('tasks', 'no state')}"
            )
        self._state = g2rpo.EMAState.from_json(state["scale"], self._state.mean)
