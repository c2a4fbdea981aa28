"""From what the optimiser steps on a batch of rollouts report to the metrics of a training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_BY_TASK = "tasks/"
# Rollouts report their entropy themselves, also that of prompts from which nothing is learned.
_OF_ROLLOUTS = {"entropy", "tasks/entropy"}


class Update(NamedTuple):
    """What one optimiser step reports of its mini-batch.

    Attributes
    ----------
    reported : mapping of str to number or array
        Under the names of :func:`g2rpo.g2rpo_loss` and others: scalars, and behind ``tasks/`` what
        is (num_tasks,).
    task_tokens : array (num_tasks,)
        Response tokens of each task in the mini-batch.
    """

    reported: Mapping[str, Any]
    task_tokens: npt.ArrayLike


def update_metrics(updates: Sequence[Update], tasks: Sequence[str]) -> dict[str, float]:
    """Return the means over the updates, and of a name that ends in ``/max`` the largest value.

    Parameters
    ----------
    updates : sequence of Update
        Of one batch of rollouts.
    tasks : sequence of str
        Names of the tasks.

    Returns
    -------
    dict of str to float
        What is reported by task ends in the task's name; its mean is over the updates in which the
        task has tokens, and without any there is none.

    Examples
    --------
    >>> first = Update({"kl": 1.0, "tasks/kl": [1.0, 0.0]}, task_tokens=[5, 0])
    >>> second = Update({"kl": 2.5, "tasks/kl": [2.0, 3.0]}, task_tokens=[5, 5])
    >>> update_metrics([first, second], ["ocr", "maths"])
    {'kl': 1.75, 'kl/ocr': 1.5, 'kl/maths': 3.0}
    """
    columns: dict[str, list[float]] = {}
    largest: dict[str, bool] = {}
    for update in updates:
        for name, value in update.reported.items():
            if name in _OF_ROLLOUTS:
                continue
            for own, number in _named(name, value, update.task_tokens, tasks):
                columns.setdefault(own, []).append(number)
                largest[own] = name.endswith("/max")
    return {
        name: max(values) if largest[name] else sum(values) / len(values)
        for name, values in columns.items()
    }


def _named(
    name: str, value: Any, task_tokens: npt.ArrayLike, tasks: Sequence[str]
) -> Iterator[tuple[str, float]]:
    if not name.startswith(_BY_TASK):
        yield name, float(value)
        return
    counts = np.asarray(task_tokens)
    for task, number, count in zip(tasks, np.asarray(value), counts, strict=True):
        if count > 0:
            yield f"{name.removeprefix(_BY_TASK)}/{task}", float(number)
