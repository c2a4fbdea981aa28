"""The log of a step's responses: some of them, and histograms of all their advantages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BIN_EDGES", "advantage_counts", "keep_some"]

#: Edges of the bins between the first and the last one, which are open: a quarter of a standard
#: deviation wide, one of them centred on 0.
BIN_EDGES: npt.NDArray[np.float64] = np.arange(-3.875, 4.0, 0.25)


def keep_some(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return at most `count` responses of a step: tasks take turns, each in the batch's order.

    Nothing is drawn at random, so a resumed run keeps the same. As the responses to a prompt are
    sampled alike, the first of them is no better than any other.

    Parameters
    ----------
    rows : sequence of mapping
        All responses, with at least ``task`` and ``prompt``; those to one prompt stand together.
    count : int
        Number of responses to keep.

    Examples
    --------
    >>> rows = [{"task": t, "prompt": p} for t, p in ["a1", "a1", "a2", "b1", "b1"]]
    >>> [row["task"] + row["prompt"] for row in keep_some(rows, 3)]
    ['a1', 'b1', 'a2']
    """
    by_prompt: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault((row["task"], row["prompt"]), []).append(row)
    by_task: dict[str, list[list[Mapping[str, Any]]]] = {}
    for (task, _), answers in by_prompt.items():
        by_task.setdefault(task, []).append(answers)
    # One response to each prompt of a task comes before the second to any of them.
    orders = [_in_turn(prompts) for prompts in by_task.values()]
    return _in_turn(orders)[:count]


def _in_turn(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]


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
