"""Histograms of a step's advantages by task, small enough to be kept for every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BIN_EDGES", "advantage_counts"]

#: Edges of the bins between the first and the last one, which are open: a quarter of a standard
#: deviation wide, one of them centred on 0.
BIN_EDGES: npt.NDArray[np.float64] = np.arange(-3.875, 4.0, 0.25)


def advantage_counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return how many advantages of each task lie in each bin.

    A prompt whose responses all have the advantage 0 has no signal, and is left out: how many
    there are is a metric of its own.

    Parameters
    ----------
    rows : iterable of mapping
        Responses of one step with ``task``, ``record``, ``advantage`` and ``kept``, as
        :attr:`g2rpo_trainer.step.StepResult.completions`; others are left out.

    Returns
    -------
    dict of str to list of int
        Task to ``len(BIN_EDGES) + 1`` counts.

    Examples
    --------
    >>> rows = [{"task": "ocr", "record": 0, "advantage": value, "kept": True} for value in (-9, 9)]
    >>> counts = advantage_counts(rows)["ocr"]
    >>> len(counts), counts[0], counts[-1], sum(counts)
    (33, 1, 1, 2)
    """
    prompts: dict[tuple[str, Any], list[float]] = {}
    for row in rows:
        if row.get("kept") and "advantage" in row:
            prompts.setdefault((row["task"], row["record"]), []).append(row["advantage"])
    counts: dict[str, npt.NDArray[np.int64]] = {}
    for (task, _), values in prompts.items():
        if any(values):
            counts[task] = counts.get(task, 0) + _counted(values)
    return {task: of_task.tolist() for task, of_task in counts.items()}


def _counted(values: Sequence[float]) -> npt.NDArray[np.int64]:
    bins = np.searchsorted(BIN_EDGES, np.asarray(values, np.float64), side="right")
    return np.bincount(bins, minlength=len(BIN_EDGES) + 1)
