"""From token losses to one number."""

from __future__ import annotations

from typing import Literal, TypeAlias

from g2rpo._checks import require_choice, require_positive
from g2rpo._typing import Array, Namespace

Aggregation: TypeAlias = Literal["token", "sequence", "constant"]


def check_aggregation(aggregation: str, max_completion_length: int | None) -> None:
    """Raise unless the aggregation is known and has the length that it needs."""
    require_choice("aggregation", aggregation, ("token", "sequence", "constant"))
    if aggregation == "constant":
        if max_completion_length is None:
            raise ValueError('aggregation="constant" needs max_completion_length')
        require_positive("max_completion_length", max_completion_length)
    elif max_completion_length is not None:
        raise ValueError(
            f'max_completion_length goes with aggregation="constant", not {aggregation!r}'
        )


def aggregate(
    xp: Namespace,
    values: Array,
    mask: Array,
    aggregation: Aggregation,
    denominator: Array | float | None,
    max_completion_length: int | None,
) -> Array:
    """Reduce token values (B, T), finite where masked out, to a scalar; 0 without tokens."""
    weights = xp.astype(mask, values.dtype)
    lengths = xp.sum(weights, axis=1)
    sums = xp.sum(xp.where(mask, values, 0.0), axis=1)
    if denominator is None:
        counted = weights if aggregation == "token" else xp.astype(lengths > 0, values.dtype)
        denominator = at_least_one(xp, xp.sum(counted))
    else:
        denominator = as_divisor(xp, denominator, values)
    if aggregation == "sequence":
        sums = sums / at_least_one(xp, lengths)
    total = xp.sum(sums) / denominator
    return total / max_completion_length if aggregation == "constant" else total


def masked_mean(xp: Namespace, values: Array, mask: Array) -> Array:
    """Return the mean of the values that the mask marks; 0 if there are none."""
    return aggregate(xp, values, mask, "token", None, None)


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
