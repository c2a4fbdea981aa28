"""What a loss reports of its tokens: over all of them, and over those of each task.

A metric is the mean of the tokens' values, or the largest where its name ends in ``/max``; of a
task it has the same name behind ``tasks/``. Values are constants, finite where masked out.
"""

from __future__ import annotations

from g2rpo._aggregation import Reduction, as_divisor, masked_max, masked_mean
from g2rpo._libraries import device_of
from g2rpo._typing import Array, Namespace
from g2rpo.entropy import membership, task_sums


def reported(xp: Namespace, values: dict[str, Array], batch: Reduction) -> dict[str, Array]:
    """Return the metrics of token values (B, T), scalars; by task, if their number is given.

    Those by task have shape (num_tasks,). The sums are divided by the totals' tokens of the task,
    if given, else by those here; a task without tokens has 0.
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
    # A zero column and a zero row in front: there may be no token, or no response.
    marked = xp.where(batch.mask, values, 0.0)
    column = xp.zeros_like(xp.sum(marked, axis=1, keepdims=True))
    of_row = xp.max(xp.concat([column, marked], axis=1), axis=1, keepdims=True)
    of_task = xp.where(membership(xp, batch.tasks, batch.num_tasks), of_row, 0.0)
    row = xp.zeros((1, batch.num_tasks), dtype=of_task.dtype, device=device_of(of_task))
    return xp.max(xp.concat([row, of_task], axis=0), axis=0)
