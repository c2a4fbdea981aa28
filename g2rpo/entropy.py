"""Entropy shaping: exact token entropies, their mean per task, and bounds of these means.

All entropies are in nats. A *mask* marks the response tokens that count; values elsewhere may be
anything, NaN included. A task without a counted token is *absent*: it has no mean and adds no
penalty.
"""

from __future__ import annotations

from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_floating,
    require_labels,
    require_shape,
    widen,
)
from g2rpo._entropy_bounds import EntropyBounds, adapt_entropy_weights, entropy_penalty
from g2rpo._libraries import device_of, stop_gradient
from g2rpo._typing import Array, Namespace

__all__ = [
    "EntropyBounds",
    "adapt_entropy_weights",
    "entropy_from_logits",
    "entropy_from_probs",
    "entropy_penalty",
    "task_means",
]


def entropy_from_logits(logits: Array, /) -> Array:
    r"""Return the exact entropy :math:`-\sum_v p_v \log p_v` of softmax(logits), in nats.

    Parameters
    ----------
    logits : array
        Floating point, shape (..., V). Minus infinity excludes an entry.

    Returns
    -------
    array
        Shape (...), the dtype of ``logits``; half precision is computed in float32. A row without
        a finite logit has entropy 0.

    Raises
    ------
    TypeError
        If ``logits`` is no array or not real floating point.
    ValueError
        If ``logits`` has no axis.

    Notes
    -----
    Differentiable, with a finite gradient also where logits are minus infinity. This is the
    entropy to shape: the mean of -log p over sampled tokens has the same value in expectation,
    but an expected gradient of zero.

    Examples
    --------
    >>> import numpy as np
    >>> entropy_from_logits(np.asarray([[0.0, 0.0], [3.0, -np.inf]])).round(4)
    array([0.6931, 0.    ])
    """
    xp = namespace_of(logits=logits)
    require_floating(xp, "logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits must have shape (..., V), got ()")
    wide = widen(xp, logits)
    highest = stop_gradient(xp.max(wide, axis=-1, keepdims=True))
    highest = xp.where(highest > -xp.inf, highest, 0.0)
    # 0 * inf would be NaN, in the value and in the gradient; exp of this is 0 in float64, too.
    shifted = xp.clip(wide - highest, min=-800.0)
    weights = xp.exp(shifted)
    total = xp.sum(weights, axis=-1)
    total = xp.where(total > 0, total, 1.0)
    entropy = xp.log(total) - xp.sum(weights * shifted, axis=-1) / total
    return xp.astype(entropy, logits.dtype)


def entropy_from_probs(probs: Array, /) -> Array:
    """Return the entropy of probabilities that sum to 1 over the last axis, in nats.

    Parameters
    ----------
    probs : array
        Floating point, shape (..., V), non-negative. Zeros contribute nothing.

    Returns
    -------
    array
        Shape (...), the dtype of ``probs``.

    Raises
    ------
    TypeError
        If ``probs`` is no array or not real floating point.
    ValueError
        If ``probs`` has no axis.

    Examples
    --------
    >>> import numpy as np
    >>> float(entropy_from_probs(np.asarray([0.5, 0.5, 0.0])).round(4))
    0.6931
    """
    xp = namespace_of(probs=probs)
    require_floating(xp, "probs", probs)
    if probs.ndim == 0:
        raise ValueError("probs must have shape (..., V), got ()")
    wide = widen(xp, probs)
    surprise = -xp.log(xp.where(wide > 0, wide, 1.0))
    return xp.astype(xp.sum(wide * surprise, axis=-1), probs.dtype)


def task_means(
    token_values: Array, mask: Array, tasks: Array, /, num_tasks: int
) -> tuple[Array, Array]:
    """Return the mean token value of each task, over the tokens that the mask marks.

    Parameters
    ----------
    token_values : array
        Floating point, shape (B, T), such as entropies in nats.
    mask : array
        bool or 0/1, shape (B, T).
    tasks : array
        Integer labels, shape (B,). Labels outside 0 .. num_tasks - 1 belong to no task.
    num_tasks : int
        Number of tasks, at least 1.

    Returns
    -------
    means : array
        Shape (num_tasks,), 0 for an absent task; differentiable.
    present : array
        bool, shape (num_tasks,).

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If shapes differ or ``num_tasks`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.asarray([[1.0, 3.0], [5.0, np.nan]])
    >>> mask = np.asarray([[True, True], [True, False]])
    >>> task_means(values, mask, np.asarray([0, 2]), 3)
    (array([2., 0., 5.]), array([ True, False,  True]))
    """
    xp = namespace_of(token_values=token_values, mask=mask, tasks=tasks)
    require_floating(xp, "token_values", token_values)
    require_shape("token_values", token_values, ("B", "T"))
    mask = as_mask(xp, mask, token_values.shape)
    require_labels(xp, "tasks", tasks, token_values.shape[0])
    sums, tokens = task_sums(xp, token_values, mask, tasks, num_tasks)
    present = tokens > 0
    means = sums / xp.where(present, tokens, 1.0)
    return xp.astype(means, token_values.dtype), present


def task_sums(
    xp: Namespace, token_values: Array, mask: Array, tasks: Array, num_tasks: int
) -> tuple[Array, Array]:
    """Return per task the sum of the masked values and the number of tokens, at least float32."""
    member = membership(xp, tasks, num_tasks)
    values = widen(xp, token_values)
    of_row = xp.sum(xp.where(mask, values, 0.0), axis=1, keepdims=True)
    tokens_of_row = xp.sum(xp.astype(mask, values.dtype), axis=1, keepdims=True)
    # `where`, since 0 * infinity would make the other tasks NaN.
    sums, tokens = (xp.sum(xp.where(member, each, 0.0), axis=0) for each in (of_row, tokens_of_row))
    return sums, tokens


def membership(xp: Namespace, tasks: Array, num_tasks: int) -> Array:
    """Return bool (B, num_tasks): whether a response with labels (B,) belongs to a task."""
    if isinstance(num_tasks, bool) or not isinstance(num_tasks, int):
        raise TypeError(f"num_tasks must be an int, got {type(num_tasks).__name__}")
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
    codes = xp.arange(num_tasks, dtype=tasks.dtype, device=device_of(tasks))
    return xp.expand_dims(tasks, axis=1) == xp.expand_dims(codes, axis=0)
