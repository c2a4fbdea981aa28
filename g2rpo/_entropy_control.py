"""Entropy weights that adapt: dual ascent on every task's band."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from g2rpo._checks import namespace_of, require_floating, require_positive, require_shape
from g2rpo._state import state_from_json, state_to_json
from g2rpo._typing import Array


class EntropyControl(NamedTuple):
    """One weight for each task's entropy term; save it with the model.

    Attributes
    ----------
    weights : array
        Floating point, shape (num_tasks,), non-negative: the ``entropy_weight`` of
        :func:`g2rpo.g2rpo_loss`.
    """

    weights: Array

    def to_json(self) -> dict[str, Any]:
        """Return the state as dictionaries and lists."""
        return state_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], like: Array) -> EntropyControl:
        """Return the state that :meth:`to_json` wrote, with the library and dtype of ``like``."""
        return state_from_json(cls, data, like)


def adapt_entropy_weights(
    state: EntropyControl,
    task_entropy: Array,
    low: Array,
    high: Array,
    /,
    present: Array | None = None,
    *,
    learning_rate: float = 0.02,
    minimum: float = 0.0,
    maximum: float = 1.0,
) -> EntropyControl:
    r"""Raise the weight of every task outside its entropy band, and lower it inside.

    .. math:: w_t \leftarrow \mathrm{clip}(w_t + \eta \, g_t), \qquad
              g_t = \max(H_t - high_t, low_t - H_t)

    A fixed weight either does nothing or dominates. This is the ascent on the multiplier of the
    constraint g <= 0: the weight grows for as long as the entropy is outside, and what the task
    no longer needs it gives back.

    Parameters
    ----------
    state : EntropyControl
        The weights so far.
    task_entropy : array
        Mean token entropy of each task, shape (num_tasks,), in nats.
    low, high : array
        Bounds, shape (num_tasks,), in nats, the dtype of ``task_entropy``; ``high`` may be
        infinite.
    present : array, optional
        bool, shape (num_tasks,): tasks to update; the others keep their weight.
    learning_rate : float, optional
        Change of weight for each nat and update.
    minimum, maximum : float, optional
        Bounds of the weight.

    Returns
    -------
    EntropyControl
        The new weights.

    Raises
    ------
    TypeError
        If an argument is no array or not floating point.
    ValueError
        If shapes differ or an option is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> state = EntropyControl(np.asarray([0.02, 0.02, 0.02]))
    >>> low, high = np.full(3, 0.2), np.full(3, 0.6)
    >>> adapt_entropy_weights(state, np.asarray([0.1, 0.4, 1.6]), low, high).weights.round(4)
    array([0.022, 0.016, 0.04 ])
    """
    weights = state.weights
    xp = namespace_of(weights=weights, task_entropy=task_entropy, low=low, high=high)
    require_floating(xp, "task_entropy", task_entropy)
    require_shape("task_entropy", task_entropy, ("num_tasks",))
    for name, array in (("state.weights", weights), ("low", low), ("high", high)):
        require_shape(name, array, task_entropy.shape)
    require_positive("learning_rate", learning_rate, zero=True)
    require_positive("minimum", minimum, zero=True)
    require_positive("maximum", maximum, zero=True)
    if minimum > maximum:
        raise ValueError(f"minimum must not exceed maximum, got {minimum!r} and {maximum!r}")
    outside = xp.astype(xp.maximum(task_entropy - high, low - task_entropy), weights.dtype)
    adapted = xp.clip(weights + learning_rate * outside, minimum, maximum)
    if present is not None:
        require_shape("present", present, task_entropy.shape)
        adapted = xp.where(present, adapted, weights)
    return EntropyControl(adapted)
