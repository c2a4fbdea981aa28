"""Bounds of each task's mean token entropy: the penalty outside of them, and weights that adapt."""

from __future__ import annotations

import math
from dataclasses import dataclass

from g2rpo._checks import namespace_of, require_floating, require_positive, require_shape
from g2rpo._typing import Array, Namespace


@dataclass(frozen=True)
class EntropyBounds:
    """The band, in nats, that the mean token entropy of a task should stay in.

    Parameters
    ----------
    low, high : float
        0 <= low <= high; ``high`` may be infinite.

    Raises
    ------
    ValueError
        If the bounds are not ordered, negative, NaN, or ``low`` is infinite.

    Examples
    --------
    >>> EntropyBounds(0.2, 0.6).high
    0.6
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.high and math.isfinite(self.low)):
            raise ValueError(
                "entropy bounds must have 0 <= low <= high with finite low, "
                f"got ({self.low}, {self.high})"
            )


def entropy_penalty(
    task_entropy: Array, low: Array, high: Array, /, present: Array | None = None
) -> Array:
    r"""Return how far the tasks' entropies are outside their bands, in nats.

    :math:`\sum_t \max(0, H_t - high_t) + \max(0, low_t - H_t)`

    Parameters
    ----------
    task_entropy : array
        Floating point, shape (num_tasks,), in nats.
    low, high : array
        Bounds, shape (num_tasks,), the dtype of ``task_entropy``; ``high`` may be infinite.
    present : array, optional
        bool, shape (num_tasks,): tasks to count; all by default.

    Returns
    -------
    array
        Scalar. Its gradient is +1 above, -1 below and 0 inside the band.

    Raises
    ------
    TypeError
        If an argument is no array or ``task_entropy`` is not floating point.
    ValueError
        If shapes differ.

    References
    ----------
    G²RPO, arXiv:2604.08539, Eq. 10.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = np.asarray([0.2, 0.2, 0.2]), np.asarray([0.6, 0.6, 0.6])
    >>> round(float(entropy_penalty(np.asarray([0.1, 0.4, 0.9]), low, high)), 4)
    0.4
    """
    xp = namespace_of(task_entropy=task_entropy, low=low, high=high, present=present)
    require_floating(xp, "task_entropy", task_entropy)
    require_shape("task_entropy", task_entropy, ("num_tasks",))
    require_shape("low", low, task_entropy.shape)
    require_shape("high", high, task_entropy.shape)
    is_above = task_entropy > high
    excess = beyond(xp, task_entropy, 1.0, low, high, is_above)
    hinge = xp.where(is_above | (task_entropy < low), excess, 0.0)
    if present is not None:
        require_shape("present", present, task_entropy.shape)
        hinge = xp.where(present, hinge, 0.0)
    return xp.sum(hinge)


def adapt_entropy_weights(
    weights: Array,
    task_entropy: Array,
    low: Array,
    high: Array,
    /,
    present: Array | None = None,
    *,
    learning_rate: float = 0.02,
    minimum: float = 0.0,
    maximum: float = 1.0,
) -> Array:
    r"""Raise the weight of every task outside its entropy band, and lower it inside.

    .. math:: w_t \leftarrow \mathrm{clip}(w_t + \eta \, g_t), \qquad
              g_t = \max(H_t - high_t, low_t - H_t)

    A fixed weight either does nothing or dominates. This is gradient ascent on the multiplier of
    the constraint g <= 0: the weight grows while the entropy is outside the band, and shrinks while
    it is inside.

    Parameters
    ----------
    weights : array
        The weights so far, floating point, shape (num_tasks,), non-negative: the ``entropy_weight``
        of :func:`g2rpo.g2rpo_loss`. Save them with the model.
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
    array
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
    >>> weights, low, high = np.full(3, 0.02), np.full(3, 0.2), np.full(3, 0.6)
    >>> adapt_entropy_weights(weights, np.asarray([0.1, 0.4, 1.6]), low, high).round(4)
    array([0.022, 0.016, 0.04 ])
    """
    xp = namespace_of(weights=weights, task_entropy=task_entropy, low=low, high=high)
    require_floating(xp, "task_entropy", task_entropy)
    require_shape("task_entropy", task_entropy, ("num_tasks",))
    for name, array in (("weights", weights), ("low", low), ("high", high)):
        require_shape(name, array, task_entropy.shape)
    require_positive("learning_rate", learning_rate, zero=True)
    require_positive("minimum", minimum, zero=True)
    require_positive("maximum", maximum, zero=True)
    if minimum > maximum:
        raise ValueError(f"minimum must not exceed maximum, got {minimum!r} and {maximum!r}")
    is_above = task_entropy - high > low - task_entropy
    outside = beyond(xp, task_entropy, 1.0, low, high, is_above)
    adapted = xp.clip(weights + learning_rate * xp.astype(outside, weights.dtype), minimum, maximum)
    if present is not None:
        require_shape("present", present, task_entropy.shape)
        adapted = xp.where(present, adapted, weights)
    return adapted


def beyond(
    xp: Namespace, total: Array, count: Array | float, low: Array, high: Array, is_above: Array
) -> Array:
    """Return the distance of a sum of ``count`` entropies to its upper bound, else to its lower.

    Positive outside of the band, negative inside.
    """
    # An infinite bound must not be multiplied by a count of 0 where it is not used.
    upper = xp.where(is_above, high, 0.0)
    return xp.where(is_above, total - upper * count, low * count - total)
