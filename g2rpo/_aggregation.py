"""Reduction of token values (B, T): of losses to a scalar, of metrics to scalars and task means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from g2rpo._libraries import device_of
from g2rpo._typing import Array, Namespace
from g2rpo.entropy import membership, task_sums
from g2rpo.task_weights import weights_of

if TYPE_CHECKING:
    from g2rpo._totals import BatchTotals
    from g2rpo.loss_options import LossOptions

Aggregation: TypeAlias = Literal["token", "sequence", "constant", "task"]


class Reduction(NamedTuple):
    """Mask, resolved options, totals and tasks of a batch, all checked."""

    mask: Array
    options: LossOptions
    totals: BatchTotals | None
    tasks: Array | None
    num_tasks: Any  # an int, if there are tasks


def aggregate(
    xp: Namespace, values: Array, batch: Reduction, task_weights: Array | None = None
) -> Array:
    """Reduce token values (B, T), finite where masked out, to a scalar; 0 without tokens."""
    mask, options = batch.mask, batch.options
    weights = xp.astype(mask, values.dtype)
    lengths = xp.sum(weights, axis=1)
    sums = xp.sum(xp.where(mask, values, 0.0), axis=1)
    if options.aggregation == "task":
        return _mean_of_tasks(xp, sums, lengths, batch, task_weights)
    if options.aggregation == "sequence":
        sums = sums / at_least_one(xp, lengths)
    if task_weights is not None:
        sums = sums * weights_of(xp, batch.tasks, xp.astype(task_weights, sums.dtype))
    if batch.totals is not None:
        totals = batch.totals
        total = totals.tokens if options.aggregation == "token" else totals.sequences
        denominator = as_divisor(xp, total, values)
    else:
        is_mean_of_tokens = options.aggregation == "token"
        counted = weights if is_mean_of_tokens else xp.astype(lengths > 0, values.dtype)
        denominator = at_least_one(xp, xp.sum(counted))
    total = xp.sum(sums) / denominator
    longest = options.max_completion_length
    return total / longest if options.aggregation == "constant" else total


def _mean_of_tasks(
    xp: Namespace, sums: Array, lengths: Array, batch: Reduction, task_weights: Array | None
) -> Array:
    """Return the mean over the tasks with tokens of each task's weighted mean over its tokens."""
    member = membership(xp, batch.tasks, batch.num_tasks)
    # `where`, since 0 * infinity would make the other tasks NaN.
    of_task = xp.sum(xp.where(member, xp.expand_dims(sums, axis=1), 0.0), axis=0)
    if batch.totals is not None:
        tokens = xp.astype(batch.totals.task_tokens, sums.dtype)
    else:
        tokens = xp.sum(xp.where(member, xp.expand_dims(lengths, axis=1), 0.0), axis=0)
    means = of_task / at_least_one(xp, tokens)
    if task_weights is not None:
        means = means * xp.astype(task_weights, sums.dtype)
    present = xp.sum(xp.astype(tokens > 0, sums.dtype))
    return xp.sum(means) / at_least_one(xp, present)


def reported(xp: Namespace, values: dict[str, Array], batch: Reduction) -> dict[str, Array]:
    """Return metrics of constant token values (B, T), finite where masked out.

    A metric is the mean over the tokens, or the maximum if its name ends in ``/max``. If the number
    of tasks is given, ``tasks/<name>`` is the same by task, shape (num_tasks,): means are divided
    by the task's tokens in the totals, if given, else in this batch; 0 for a task without tokens.
    """
    mask = batch.mask
    metrics = {
        name: (masked_max if name.endswith("/max") else masked_mean)(xp, column, mask)
        for name, column in values.items()
    }
    if batch.num_tasks is None:
        return metrics
    for name, column in values.items():
        of_task = _task_max if name.endswith("/max") else _task_share
        metrics[f"tasks/{name}"] = of_task(xp, column, batch)
    return metrics


def _task_share(xp: Namespace, values: Array, batch: Reduction) -> Array:
    sums, tokens = task_sums(xp, values, batch.mask, batch.tasks, batch.num_tasks)
    total = tokens if batch.totals is None else batch.totals.task_tokens
    return sums / as_divisor(xp, total, sums)


def _task_max(xp: Namespace, values: Array, batch: Reduction) -> Array:
    # A zero column and a zero row are added: there may be no token, or no response.
    marked = xp.where(batch.mask, values, 0.0)
    column = xp.zeros_like(xp.sum(marked, axis=1, keepdims=True))
    of_row = xp.max(xp.concat([column, marked], axis=1), axis=1, keepdims=True)
    of_task = xp.where(membership(xp, batch.tasks, batch.num_tasks), of_row, 0.0)
    row = xp.zeros((1, batch.num_tasks), dtype=of_task.dtype, device=device_of(of_task))
    return xp.max(xp.concat([row, of_task], axis=0), axis=0)


def masked_mean(xp: Namespace, values: Array, mask: Array) -> Array:
    """Return the mean of the values that the mask marks; 0 if there are none."""
    tokens = xp.sum(xp.astype(mask, values.dtype))
    return xp.sum(xp.sum(xp.where(mask, values, 0.0), axis=1)) / at_least_one(xp, tokens)


def masked_max(xp: Namespace, values: Array, mask: Array) -> Array:
    """Return the largest of non-negative values that the mask marks; 0 if there are none."""
    marked = xp.reshape(xp.where(mask, values, 0.0), (-1,))
    # The added zero is the maximum of an array without tokens.
    return xp.max(xp.concat([xp.zeros_like(xp.sum(marked, keepdims=True)), marked]))


def at_least_one(xp: Namespace, count: Array) -> Array:
    """Return the count, and 1 in place of 0."""
    return xp.where(count > 0, count, 1.0)


def as_divisor(xp: Namespace, total: Array | float, like: Array) -> Array | float:
    """Return a total as a divisor in the dtype of ``like``, with 1 in place of 0."""
    if isinstance(total, int | float):
        return total if total > 0 else 1.0
    return at_least_one(xp, xp.astype(total, like.dtype))
