"""Checks of a tunix dataset: what goes wrong in silence otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from .labels import task_codes


class Checked:
    """A dataset whose batches are checked before tunix sees them.

    Parameters
    ----------
    batches : iterable of dict
        Column name -> array, with ``prompts``; iterated over as often as the original can be.
    config : object
        With ``tasks`` and ``task_column``.
    """

    def __init__(self, batches: Iterable[Any], config: Any) -> None:
        self._batches, self._config = batches, config

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            _check(batch, self._config)
            yield batch


def _check(batch: Any, config: Any) -> None:
    if not isinstance(batch, dict) or "prompts" not in batch:
        raise TypeError(
            f"a batch must be a dict of columns with 'prompts', got {type(batch).__name__}"
        )
    for name, column in batch.items():
        # tunix repeats every leaf of a batch: a list is torn into its elements without a word.
        if not isinstance(column, np.ndarray | jax.Array):
            raise TypeError(
                f"column {name!r} must be a NumPy array, got {type(column).__name__}; "
                f"wrap it in numpy.asarray"
            )
        if column.ndim != 1 or len(column) != len(batch["prompts"]):
            raise ValueError(
                f"column {name!r} must have shape ({len(batch['prompts'])},), got {column.shape}"
            )
    if not config.tasks:
        return
    if config.task_column not in batch:
        raise ValueError(
            f"the dataset must have the column {config.task_column!r} with each prompt's task, "
            f"it has: {', '.join(sorted(batch))}"
        )
    task_codes(batch[config.task_column], config.tasks, config.task_column)
