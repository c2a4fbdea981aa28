"""From token losses to one number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from g2rpo._typing import Array, Namespace
from g2rpo.entropy import membership
from g2rpo.task_weights import weights_of

if TYPE_CHECKING:
    from g2rpo._totals import BatchTotals
    from g2rpo.loss_options import LossOptions

Aggregation: TypeAlias = Literal["token", "sequence", "constant", "task"]


class Reduction(NamedTuple):
    """Everything that turns token values into one number; checked, the options without gaps."""

    mask: Array
    options: LossOptions
    totals: BatchTotals | None
    tasks: Array | None
    num_tasks: Any  # an int wherever tasks are asked for


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
    # Selected, not multiplied by 0: an infinite row is its own task's affair.
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


def masked_mean(xp: Namespace, values: Array, mask: Array) -> Array:
    """Return the mean of the values that the mask marks; 0 if there are none."""
    tokens = xp.sum(xp.astype(mask, values.dtype))
    return xp.sum(xp.sum(xp.where(mask, values, 0.0), axis=1)) / at_least_one(xp, tokens)


def masked_max(xp: Namespace, values: Array, mask: Array) -> Array:
    """Return the largest of non-negative values that the mask marks; 0 if there are none."""
    marked = xp.reshape(xp.where(mask, values, 0.0), (-1,))
    # A zero in front gives arrays without tokens a largest element.
    return xp.max(xp.concat([xp.zeros_like(xp.sum(marked, keepdims=True)), marked]))


def at_least_one(xp: Namespace, count: Array) -> Array:
    """Return the count, or 1 where nothing was counted."""
    return xp.where(count > 0, count, 1.0)


def as_divisor(xp: Namespace, total: Array | float, like: Array) -> Array | float:
    """Return a total of the caller's as a safe divisor in the dtype of ``like``."""
    if isinstance(total, int | float):
        return total if total > 0 else 1.0
    return at_least_one(xp, xp.astype(total, like.dtype))
