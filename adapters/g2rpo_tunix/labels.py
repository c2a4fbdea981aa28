"""Task labels as a dataset's column has them, to the integers that the core takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo import encode_labels
from g2rpo._suggest import unknown_name

Codes = npt.NDArray[np.int64]


def task_codes(labels: Any, tasks: Sequence[str], column: str = "task") -> Codes:
    """Return the number of each rollout's task.

    Parameters
    ----------
    labels : array or sequence
        N names of tasks, or their numbers.
    tasks : sequence of str
        The names, in the order of their numbers; empty if the batch's own names are to be
        numbered, in sorted order.
    column : str
        Name of the labels in errors.

    Returns
    -------
    numpy.ndarray
        int64, shape (N,).

    Raises
    ------
    TypeError
        If the labels are neither strings nor integers.
    ValueError
        If a label is none of the tasks, or the labels have more than one axis.

    Examples
    --------
    >>> task_codes(["ocr", "maths", "ocr"], ["maths", "ocr", "chart"])
    array([1, 0, 1])
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"column {column!r} must have one label a prompt, got {values.shape}")
    if values.dtype.kind in "iu":
        if tasks and not np.isin(values, np.arange(len(tasks))).all():
            outside = values[(values < 0) | (values >= len(tasks))][0]
            raise ValueError(
                f"column {column!r} must be in 0 .. {len(tasks) - 1}, the numbers of "
                f"{', '.join(tasks)}, got {outside}"
            )
        return values.astype(np.int64)
    if values.dtype.kind not in "UOT":
        raise TypeError(
            f"column {column!r} must hold names or numbers of tasks, got dtype {values.dtype}"
        )
    codes, names = encode_labels(values.tolist())
    if not tasks:
        return codes
    for name in names:
        if name not in tasks:
            raise ValueError(f"column {column!r}: {unknown_name('task', name, tasks)}")
    numbers = np.asarray([list(tasks).index(name) for name in names], dtype=np.int64)
    return numbers[codes]
