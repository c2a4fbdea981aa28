"""Token and response counts of a mini-batch, for losses that are computed slice by slice."""

from __future__ import annotations

from typing import NamedTuple

from g2rpo._aggregation import as_divisor
from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_floating,
    require_labels,
    require_shape,
    wide_dtype,
)
from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array, Namespace
from g2rpo.entropy import task_sums


class BatchTotals(NamedTuple):
    """Token and response counts of a mini-batch: the denominators of the losses of its slices.

    A mini-batch is everything in one optimiser step: all micro-batches of all processes.

    Attributes
    ----------
    tokens : array or float
        Number of response tokens.
    sequences : array or float
        Number of responses with at least one token.
    task_tokens : array, optional
        Response tokens of each task, shape (num_tasks,); for the entropy term and for metrics by
        task.
    task_entropy : array, optional
        Mean token entropy of each task in nats, shape (num_tasks,); for the entropy term, which
        compares it with the task's bounds.
    """

    tokens: Array | float
    sequences: Array | float
    task_tokens: Array | None = None
    task_entropy: Array | None = None


def batch_totals(
    mask: Array,
    /,
    *,
    entropies: Array | None = None,
    tasks: Array | None = None,
    num_tasks: int | None = None,
) -> BatchTotals:
    """Return the denominators of :func:`g2rpo_loss`; constants to differentiation.

    Parameters
    ----------
    mask : array
        bool or 0/1, shape (B, T).
    entropies : array, optional
        Token entropies (B, T) in nats, for the entropy term; with ``tasks`` and ``num_tasks``.
    tasks, num_tasks : optional
        Integer labels (B,) and the number of tasks, together.

    Returns
    -------
    BatchTotals
        Scalars; with tasks also their tokens, (num_tasks,), and with entropies their means.

    Raises
    ------
    TypeError
        If ``entropies`` come without ``tasks`` and ``num_tasks``, or these not together, or an
        argument has a wrong type.
    ValueError
        If shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> mask = np.asarray([[True, True], [True, False], [False, False]])
    >>> tokens, sequences, *_ = batch_totals(mask)
    >>> float(tokens), float(sequences)
    (3.0, 2.0)
    """
    xp = namespace_of(mask=mask, entropies=entropies, tasks=tasks)
    mask = as_mask(xp, mask, ("B", "T"))
    dtype = xp.float32 if entropies is None else wide_dtype(xp, entropies.dtype)
    tokens = xp.sum(xp.astype(mask, dtype))
    sequences = xp.sum(xp.astype(xp.any(mask, axis=1), dtype))
    if entropies is None and tasks is None and num_tasks is None:
        return BatchTotals(tokens, sequences)
    if tasks is None or num_tasks is None:
        raise TypeError("entropies need tasks and num_tasks, and these need each other")
    if entropies is None:
        require_labels(xp, "tasks", tasks, mask.shape[0])
        task_tokens, _ = task_sums(xp, xp.astype(mask, dtype), mask, tasks, num_tasks)
        return BatchTotals(tokens, sequences, task_tokens)
    check_entropies(xp, entropies, tasks, mask)
    sums, task_tokens = task_sums(xp, stop_gradient(entropies), mask, tasks, num_tasks)
    means = sums / as_divisor(xp, task_tokens, sums)
    return BatchTotals(tokens, sequences, task_tokens, means)


def check_entropies(xp: Namespace, entropies: Array, tasks: Array, mask: Array) -> None:
    """Raise unless the token entropies and task labels fit the mask."""
    require_floating(xp, "entropies", entropies)
    require_shape("entropies", entropies, mask.shape)
    require_labels(xp, "tasks", tasks, mask.shape[0])
