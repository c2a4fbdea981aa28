"""Weights of tasks: as factors of advantages, and adapted to the norms of the tasks' gradients."""

from __future__ import annotations

import math

from g2rpo._checks import (
    namespace_of,
    require_floating,
    require_labels,
    require_positive,
    require_shape,
    widen,
)
from g2rpo._libraries import device_of, gather
from g2rpo._typing import Array, Namespace


def weigh_tasks(advantages: Array, tasks: Array | None, task_weights: Array, /) -> Array:
    r"""Multiply advantages by the weights of their tasks.

    .. math:: A_i \leftarrow w_{t_i} A_i

    Parameters
    ----------
    advantages : array
        Floating point, shape (N,).
    tasks : array
        Integer task labels 0 .. num_tasks - 1, shape (N,). Other labels belong to no task, and
        their advantages stay as they are.
    task_weights : array
        Floating point, shape (num_tasks,), indexed by the labels.

    Returns
    -------
    array
        Shape (N,) and the dtype of ``advantages``.

    Raises
    ------
    TypeError
        If ``tasks`` is None, an argument is no array or not of the dtype above.
    ValueError
        If a shape is wrong or there are no tasks.

    Notes
    -----
    A weight of 0 leaves a task out; NaN stays NaN. The entries of :data:`g2rpo.ESTIMATORS` take
    ``task_weights`` and apply them in this way.

    Examples
    --------
    >>> import numpy as np
    >>> weigh_tasks(np.asarray([1.0, -1.0]), np.asarray([0, 1]), np.asarray([0.5, 2.0]))
    array([ 0.5, -2. ])
    """
    if tasks is None:
        raise TypeError("task_weights need tasks: their integer labels 0 .. num_tasks - 1")
    xp = namespace_of(advantages=advantages, tasks=tasks, task_weights=task_weights)
    require_floating(xp, "advantages", advantages)
    require_shape("advantages", advantages, ("N",))
    require_labels(xp, "tasks", tasks, advantages.shape[0])
    require_floating(xp, "task_weights", task_weights)
    require_shape("task_weights", task_weights, ("num_tasks",))
    if task_weights.shape[0] == 0:
        raise ValueError("task_weights must have at least one weight, got shape (0,)")
    return advantages * weights_of(xp, tasks, xp.astype(task_weights, advantages.dtype))


def weights_of(xp: Namespace, tasks: Array, task_weights: Array) -> Array:
    """Return the weight of each label's task, (N,); 1 for a label of no task."""
    last = task_weights.shape[0] - 1
    # Not every library takes narrow integers for indices.
    tasks = xp.astype(tasks, xp.arange(0, device=device_of(tasks)).dtype, copy=False)
    of_label = gather(xp, task_weights, xp.clip(tasks, 0, last))
    return xp.where((tasks >= 0) & (tasks <= last), of_label, 1.0)


def adapt_task_weights(
    norms: Array,
    weights: Array,
    /,
    *,
    rate: float = 0.5,
    low: float = 0.2,
    high: float = 5.0,
    present: Array | None = None,
) -> Array:
    r"""Raise the weights of tasks with small gradients, and lower those of tasks with large ones.

    .. math:: w_t \leftarrow \mathrm{clip}\left(w_t
              \left(\frac{g}{\lVert \nabla_t \rVert}\right)^{rate}, low, high\right)

    g is the value that does not change the geometric mean of the weights: the geometric mean of the
    norms unless a weight reaches a bound. Advantages of variance 1 in every task do not give equal
    gradients: a task with long responses has more tokens.

    Parameters
    ----------
    norms : array
        Norm of each task's own gradient with its current weight, shape (num_tasks,), floating
        point.
    weights : array
        Current weights, shape (num_tasks,), ones at the start. They are the whole state.
    rate : float, optional
        Above 0, and at most 1, which equalises norms that are proportional to the weights at once.
    low, high : float, optional
        Bounds of a weight, around 1.
    present : array, optional
        bool, shape (num_tasks,): tasks with a measured norm. A task that is absent, or with a norm
        or weight of 0, NaN, infinity or less than 0, keeps its weight and enters no mean; so does a
        task with a norm below a millionth of the largest, which is rounding of a gradient of 0.

    Returns
    -------
    array
        The new weights, shape (num_tasks,) and the dtype of ``weights``.

    Raises
    ------
    TypeError
        If an argument is no array or not floating point.
    ValueError
        If shapes differ or an option is out of its range.

    Notes
    -----
    Weights need no normalisation: their geometric mean over the updated tasks does not change. With
    the arithmetic mean of the norms, one task at a bound would drive the others to the opposite
    bound.

    Examples
    --------
    >>> import numpy as np
    >>> adapt_task_weights(np.asarray([1.0, 4.0, 0.0]), np.ones(3)).round(4)
    array([1.4142, 0.7071, 1.    ])
    """
    xp = namespace_of(norms=norms, weights=weights, present=present)
    require_floating(xp, "norms", norms)
    require_shape("norms", norms, ("num_tasks",))
    require_floating(xp, "weights", weights)
    require_shape("weights", weights, norms.shape)
    require_positive("rate", rate)
    if rate > 1:
        raise ValueError(f"rate must be at most 1, got {rate!r}")
    if not 0 < low <= 1 <= high < math.inf:
        raise ValueError(f"bounds must have 0 < low <= 1 <= high, got low={low!r}, high={high!r}")
    wide = widen(xp, weights)
    norms = xp.astype(norms, wide.dtype)
    updated = (norms > 0) & (norms < xp.inf) & (wide > 0) & (wide < xp.inf)
    # Identical responses with unequal rewards, say, have advantages whose gradients cancel.
    updated = updated & (norms > 1e-6 * xp.max(xp.where(updated, norms, 0.0)))
    if present is not None:
        require_shape("present", present, norms.shape)
        updated = updated & xp.astype(present, xp.bool)
    log_norms, logs = (xp.log(xp.where(updated, each, 1.0)) for each in (norms, wide))
    centre = _centre(xp, log_norms, logs, updated, rate, (math.log(low), math.log(high)))
    adapted = xp.clip(wide * xp.exp(rate * (centre - log_norms)), low, high)
    return xp.astype(xp.where(updated, adapted, wide), weights.dtype)


def _centre(
    xp: Namespace,
    log_norms: Array,
    logs: Array,
    updated: Array,
    rate: float,
    bounds: tuple[float, float],
) -> Array:
    """Return the log g for which the changes of the log weights sum to 0.

    The sum rises with log g, linearly between the points at which a weight reaches or leaves a
    bound.
    """
    logs = xp.clip(logs, *bounds)
    points = xp.concat([log_norms + (bound - logs) / rate for bound in bounds])
    steps = rate * (xp.expand_dims(points, axis=1) - xp.expand_dims(log_norms, axis=0))
    logs = xp.expand_dims(logs, axis=0)
    changes = xp.clip(logs + steps, *bounds) - logs
    sums = xp.sum(xp.where(xp.expand_dims(updated, axis=0), changes, 0.0), axis=1)
    left, from_left = (xp.max(xp.where(sums <= 0, each, -xp.inf)) for each in (points, sums))
    right, from_right = (xp.min(xp.where(sums >= 0, each, xp.inf)) for each in (points, sums))
    gap = from_right - from_left
    return left - (right - left) * from_left / xp.where(gap > 0, gap, 1.0)
