"""What a loss reports of its tokens: over all of them, and over those of each task.

A metric is the mean of the tokens' values, or the largest where its name ends in ``/max``; of a
task it has the same name behind ``tasks/``. Values are constants, finite where masked out.
"""

from __future__ import annotations

from g2rpo._aggregation import as_divisor, masked_max, masked_mean
from g2rpo._checks import namespace_of, require_labels, require_shape
from g2rpo._libraries import device_of
from g2rpo._surrogates import Clip
from g2rpo._typing import Array, Namespace
from g2rpo.entropy import membership, task_sums


def ratio_values(
    xp: Namespace, log_ratio: Array, advantages: Array, clip: Clip
) -> dict[str, Array]:
    """Return what is reported of the ratios, token by token (B, T), as numbers."""
    ratio = xp.exp(log_ratio)
    low = (ratio < 1.0 - clip.epsilon) & (advantages < 0)
    high = (ratio > 1.0 + clip.epsilon_high) & (advantages > 0)
    shares = {"low": low, "high": high, "region": low | high}
    clipped = {f"clip_ratio/{name}_mean": flags for name, flags in shares.items()}
    counted = {name: xp.astype(flags, ratio.dtype) for name, flags in clipped.items()}
    return {**counted, "ratio/mean": ratio, "ratio/max": ratio}


def reported(
    xp: Namespace,
    values: dict[str, Array],
    mask: Array,
    tasks: Array | None = None,
    num_tasks: int | None = None,
    task_tokens: Array | None = None,
) -> dict[str, Array]:
    """Return the metrics of token values (B, T), scalars; by task, if their number is given.

    Those by task have shape (num_tasks,). The sums are divided by ``task_tokens``, if given, else
    by the number of the task's tokens here; a task without tokens has 0.
    """
    metrics = {
        name: (masked_max if name.endswith("/max") else masked_mean)(xp, column, mask)
        for name, column in values.items()
    }
    if num_tasks is None:
        return metrics
    _check_tasks(mask, tasks, num_tasks, task_tokens)
    for name, column in values.items():
        of_task = _task_max if name.endswith("/max") else _task_share
        metrics[f"tasks/{name}"] = of_task(xp, column, mask, tasks, num_tasks, task_tokens)
    return metrics


def _check_tasks(
    mask: Array, tasks: Array | None, num_tasks: int, task_tokens: Array | None
) -> None:
    if tasks is None:
        raise TypeError("num_tasks needs tasks, whose metrics are asked for")
    xp = namespace_of(mask=mask, tasks=tasks, task_tokens=task_tokens)
    require_labels(xp, "tasks", tasks, mask.shape[0])
    if task_tokens is not None:
        require_shape("task_tokens", task_tokens, (num_tasks,))


def _task_share(
    xp: Namespace,
    values: Array,
    mask: Array,
    tasks: Array,
    num_tasks: int,
    task_tokens: Array | None,
) -> Array:
    sums, tokens = task_sums(xp, values, mask, tasks, num_tasks)
    return sums / as_divisor(xp, tokens if task_tokens is None else task_tokens, sums)


def _task_max(
    xp: Namespace, values: Array, mask: Array, tasks: Array, num_tasks: int, _: Array | None
) -> Array:
    # A zero column and a zero row in front: there may be no token, or no response.
    marked = xp.where(mask, values, 0.0)
    column = xp.zeros_like(xp.sum(marked, axis=1, keepdims=True))
    of_row = xp.max(xp.concat([column, marked], axis=1), axis=1, keepdims=True)
    of_task = xp.where(membership(xp, tasks, num_tasks), of_row, 0.0)
    row = xp.zeros((1, num_tasks), dtype=of_task.dtype, device=device_of(of_task))
    return xp.max(xp.concat([row, of_task], axis=0), axis=0)
