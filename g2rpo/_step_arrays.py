"""The arrays of a step on the host: labels, components, and the responses that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo._checks import namespace_of, require_labels
from g2rpo._libraries import to_numpy
from g2rpo._typing import Array

Floats = npt.NDArray[np.floating[Any]]
Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.integer[Any]]


def floats(values: Array) -> Any:
    """Return values as a NumPy array; integers and booleans become float64."""
    array = to_numpy(values)
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def labels_of_tasks(tasks: Array | None, size: int, names: Sequence[str]) -> Labels:
    """Return checked labels (N,), places in ``names``; all of the first task by default."""
    if tasks is None:
        return np.zeros(size, np.int64)
    labels: Labels = to_numpy(tasks)
    require_labels(namespace_of(tasks=labels), "tasks", labels, size)
    outside = (labels < 0) | (labels >= len(names))
    if outside.any():
        raise ValueError(
            f"tasks must be in 0 .. {len(names) - 1}, the places of {', '.join(names)}, "
            f"got {labels[outside][0]}"
        )
    return labels


def where_present(present: Flags, values: Any) -> Any:
    """Return values (N,) or (N, K), with NaN for rollouts that are not present (N,)."""
    rows = present.reshape(-1, *[1] * (values.ndim - 1))
    return np.where(rows, values, np.asarray(np.nan, values.dtype))


def right_responses(accuracy: Doubles, tasks: Labels) -> Flags:
    """Return which responses (N,) are right: of positive accuracy, and not below their task's mean.

    With graded rewards nearly every response has some accuracy.
    """
    right: Flags = accuracy > 0
    for task in np.unique(tasks):
        members = tasks == task
        given = accuracy[members & ~np.isnan(accuracy)]
        if given.size:
            right &= ~members | (accuracy >= given.mean())
    return right


def with_component(
    rewards: Floats, weights: Sequence[float] | None, more: Floats | None, weight: float
) -> tuple[Floats, list[float] | None]:
    """Return rewards (N,) or (N, K) with one more component (N,), and the weights of all.

    Without it, and with one component of weight 1, rewards are (N,) and there are no weights.
    """
    factors = [1.0]
    if rewards.ndim == 2:
        factors = [1.0] * rewards.shape[1] if weights is None else list(weights)
    if more is not None:
        # Components, not their sum: equal sums that differ by a rounding are to be ties.
        columns = rewards[:, None] if rewards.ndim == 1 else rewards
        # A reward that is absent stays so.
        rewarded: Any = (~np.isnan(columns)).any(axis=1)
        rewards = np.column_stack([columns, where_present(rewarded, more)])
        factors = [*factors, weight]
    if factors == [1.0]:
        return rewards.reshape(len(rewards)), None
    return rewards, factors
