"""The tasks of a data set: their names, and the number of each row's task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate.logging import get_logger
from datasets import ClassLabel, IterableDataset

from g2rpo._suggest import unknown_name

#: The column that may be missing; one that was named must be there.
TASK_COLUMN = "task_type"

_logger = get_logger(__name__)


class TaskLabels:
    """Numbers the tasks of data sets, in the same way on every process.

    Parameters
    ----------
    column : str
        Name of the column.
    tasks : sequence of str, optional
        Names of the tasks; by default those in the column, sorted.
    datasets : iterable of Dataset or IterableDataset
        Data sets for training and evaluation.

    Attributes
    ----------
    names : tuple of str
        Names of the tasks; ``("all",)`` if the data sets have no such column.
    is_single : bool
        Whether there is no such column.

    Raises
    ------
    TypeError
        If labels are neither strings nor integers.
    ValueError
        If the column is missing in part, or a label is none of the tasks.
    """

    def __init__(self, column: str, tasks: Sequence[str] | None, datasets: Iterable[Any]) -> None:
        self._column = column
        datasets = list(datasets)
        with_column = [each for each in datasets if column in _columns(each)]
        self.is_single: bool = not with_column
        self.names: tuple[str, ...] = ("all",)
        self._codes: dict[Any, int] = {}
        if not with_column:
            known = ", ".join(_columns(datasets[0])) if datasets else "none"
            if tasks or column != TASK_COLUMN:
                raise ValueError(
                    f"the data set must have the column {column!r} with each prompt's task; set "
                    f"task_column to one of its columns ({known})"
                )
            _logger.warning(
                f"The data set has no column {column!r}, so all prompts are one task, 'all'. To "
                f"train several, set task_column to the column with each prompt's task ({known})."
            )
            return
        if len(with_column) < len(datasets):
            raise ValueError(
                f"every data set, for training and for evaluation, must have the column {column!r}"
            )
        labels: dict[Any, str] = {}
        for dataset in datasets:
            labels |= self._labels_of(dataset, tasks)
        self.names = tuple(dict.fromkeys(tasks or sorted(set(labels.values()))))
        for name in labels.values():
            self._check(name)
        numbers = {name: number for number, name in enumerate(self.names)}
        self._codes = {**numbers, **{label: numbers[name] for label, name in labels.items()}}

    def codes(self, rows: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.int64]:
        """Return the number of each row's task, (N,)."""
        if self.is_single:
            return np.zeros(len(rows), np.int64)
        return np.asarray([self._code(row) for row in rows], np.int64)

    def _code(self, row: Mapping[str, Any]) -> int:
        if self._column not in row:
            raise ValueError(
                f"a row must have the column {self._column!r}, got {', '.join(row)}; leave "
                "remove_unused_columns at False, and let every row name its task"
            )
        label = row[self._column]
        code = self._codes.get(label) if isinstance(label, str | int) else None
        if code is None:
            name = self._name(label)
            self._check(name)
            code = self._codes[name]
        return code

    def _name(self, label: Any) -> str:
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise TypeError(
                f"column {self._column!r} must hold the task of each prompt as a string or an "
                f"integer, got {label!r} of {type(label).__name__}"
            )
        return str(label)

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(
                f"column {self._column!r}: {unknown_name('task', name, self.names)}; add it to "
                "tasks, or leave tasks out"
            )

    def _labels_of(self, dataset: Any, tasks: Sequence[str] | None) -> dict[Any, str]:
        """Return the names of the labels in a data set, as far as they can be known."""
        feature = (dataset.features or {}).get(self._column)
        if isinstance(feature, ClassLabel):
            return dict(enumerate(feature.names))
        if isinstance(dataset, IterableDataset):
            if not tasks:
                raise ValueError(
                    "tasks must be given for an iterable data set, which cannot tell them: set "
                    "tasks to the list of their names"
                )
            return {}
        kind = getattr(feature, "dtype", "")
        # The first value of a column that holds no labels is enough for the error.
        is_label = kind in ("string", "large_string") or kind.startswith(("int", "uint"))
        values = dataset.unique(self._column) if is_label else [dataset[0][self._column]]
        return {label: self._name(label) for label in values}


def _columns(dataset: Any) -> list[str]:
    # A stream may not know its columns before its first row.
    return list(dataset.column_names or next(iter(dataset)))
