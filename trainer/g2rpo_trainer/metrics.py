"""The metrics of a step; names are those of TRL, with the task as a suffix."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import g2rpo
from g2rpo.diagnostics import equity
from g2rpo.metrics import BY_TASK, named, suffixed
from g2rpo_trainer.scoring import Floats, Rewards

Labels = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]

# Entropies are reported of all rollouts, also of those from which nothing is learned.
_OF_ROLLOUTS = {"entropy", "tasks/entropy"}


def rollout_metrics(
    rewards: Rewards,
    *,
    lengths: Labels,
    ended: Flags,
    entropies: Floats,
    groups: Labels,
    tasks: Labels,
    names: Sequence[str],
    length_reward: Floats | None = None,
    masks_truncated: bool = False,
) -> dict[str, float]:
    """Return the metrics of all rollouts, and of those of each task.

    Parameters
    ----------
    rewards : Rewards
        N scored responses; means leave out NaN, which stands for no reward.
    lengths : array (N,), integer
        In tokens.
    ended : array (N,), bool
        False where the response was cut off at its length limit.
    entropies : array (N,)
        Summed over the tokens, in nats.
    groups, tasks : array (N,), integer
        Prompt, from 0, and number of the task.
    names : sequence of str
        Names of the tasks; a task without rollouts in this step has no metrics.
    length_reward : array (N,), optional
        From 0 to 1; NaN where no length is rewarded.
    masks_truncated : bool
        Whether responses that were cut off are masked in the loss; their share of all tokens is
        then reported.

    Returns
    -------
    dict of str to float
    """
    components = {name: column for name, column in rewards.columns().items() if name != "reward"}
    if length_reward is not None:
        components["length"] = length_reward
    overall, by_task = g2rpo.rollout_metrics(
        rewards.reward,
        groups,
        tasks,
        lengths=lengths,
        clipped=~ended,
        names=names,
        components=components,
    )

    def of(rows: Flags) -> dict[str, float]:
        total = lengths[rows].sum()
        found = {"entropy": float(entropies[rows].sum() / total)}
        if masks_truncated:
            found["completions/masked_ratio"] = float(lengths[rows & ~ended].sum() / total)
        return found

    more = {task: own | of(tasks == names.index(task)) for task, own in by_task.items()}
    return overall | of(np.ones_like(ended)) | suffixed(more)


def equity_metrics(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of gradient equity from the norm of each task's own gradient.

    Examples
    --------
    >>> equity_metrics({"ocr": 1.0, "maths": 2.0})
    {'equity/grad_norm/ocr': 1.0, 'equity/grad_norm/maths': 2.0, 'equity/ratio': 2.0}
    """
    metrics = {f"equity/grad_norm/{task}": norm for task, norm in norms.items()}
    return metrics | {"equity/ratio": equity(norms)}


class Reports:
    """Loss terms and other metrics of slices of a mini-batch, accumulated on the host.

    Attributes
    ----------
    values : dict of str to array
        Float64; loss terms under ``loss/<term>``, the rest under the names of
        :func:`g2rpo.g2rpo_loss`. Over the slices of all ranks they reduce to the mini-batch's
        values: by the maximum where the name ends in ``/max``, else by the sum.
    """

    def __init__(self) -> None:
        self.values: dict[str, npt.NDArray[np.float64]] = {}

    def add(
        self, terms: g2rpo.LossTerms, metrics: dict[str, torch.Tensor], share: torch.Tensor
    ) -> None:
        """Add a slice.

        Parameters
        ----------
        terms : LossTerms
            Loss terms of the slice, computed with the totals of the mini-batch.
        metrics : dict of str to Tensor
            Its metrics; scalars and those by task.
        share : Tensor
            The slice's share of the mini-batch's tokens, a scalar from 0 to 1.
        """
        found = {f"loss/{name}": term.detach() for name, term in terms._asdict().items()}
        for name, metric in metrics.items():
            # Means over the slice's tokens become shares; metrics by task are shares already.
            is_mean = not name.endswith("/max") and not name.startswith(BY_TASK)
            found[name] = share * metric if is_mean else metric
        for name, value in _on_host(found).items():
            if name in self.values:
                join = np.maximum if name.endswith("/max") else np.add
                value = join(self.values[name], value)
            self.values[name] = value

    def to_json(self) -> dict[str, Any]:
        """Return numbers and lists of numbers by name."""
        return {name: value.tolist() for name, value in self.values.items()}


def _on_host(tensors: dict[str, torch.Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    # One transfer for all numbers.
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).cpu().double().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors.values()])
    pieces = np.split(flat, ends[:-1])
    return {
        name: piece.reshape(tuple(tensor.shape))
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


class Update(NamedTuple):
    """The metrics of one optimiser step.

    Attributes
    ----------
    reported : mapping of str to number or array
        Metrics of :func:`g2rpo.g2rpo_loss` and others by name: scalars, and with the prefix
        ``tasks/`` arrays (num_tasks,).
    task_tokens : array (num_tasks,)
        Response tokens of each task in the mini-batch.
    """

    reported: Mapping[str, Any]
    task_tokens: npt.ArrayLike


def update_metrics(updates: Sequence[Update], tasks: Sequence[str]) -> dict[str, float]:
    """Return the means over the updates; of names that end in ``/max`` the largest value.

    Parameters
    ----------
    updates : sequence of Update
        Optimiser steps on one batch of rollouts.
    tasks : sequence of str
        Names of the tasks.

    Returns
    -------
    dict of str to float
        Metrics by task end in the task's name; their mean is over the updates in which the task
        has tokens, and a task without tokens has none.

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
        present = np.asarray(update.task_tokens) > 0
        for name, value in update.reported.items():
            if name in _OF_ROLLOUTS:
                continue
            for own, number in named(name, value, tasks, present).items():
                columns.setdefault(own, []).append(number)
                largest[own] = name.endswith("/max")
    return {
        name: max(values) if largest[name] else sum(values) / len(values)
        for name, values in columns.items()
    }


class Stopwatch:
    """Seconds of each part of a step; a part may be timed several times.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.part("rollout"):
    ...     pass
    >>> list(watch.metrics())
    ['time/rollout', 'step_time']
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside the context to a part."""
        started = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        """Return the seconds of every part, and of all since the stopwatch was made."""
        parts = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        return {**parts, "step_time": time.monotonic() - self._started}
