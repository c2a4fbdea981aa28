"""Gradient norm of each task, exactly, on a few prompts.

Advantages of equal size are meant to give tasks an equal influence. Only their gradients show
whether they do, as these also depend on lengths, on the shaping terms and on the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .batch import Batch
from .config import Output
from .distributed import Ranks
from .model.policy_model import Policy
from .optimizer import trained_parameters
from .sharding import full_tensor
from .update import Learner


class TaskNorms(NamedTuple):
    """Gradient norms of tasks.

    Attributes
    ----------
    norms : dict of str to float
        By task; empty if nothing was measured.
    with_signal : dict of str to float
        Norms of tasks with non-zero advantages: others have gradients of entropy and KL only, which
        no task weight can change.
    """

    norms: dict[str, float]
    with_signal: dict[str, float]


def gradient_norms(learner: Learner, batch: Batch, output: Output, step: int) -> TaskNorms:
    """Measure each task's own gradient, every ``output.equity_steps`` or ``task_weights.adapt``.

    It takes ``output.equity_prompts`` prompts of each task; where one has fewer in the batch, all
    tasks have that many, for a mean over fewer samples has a larger norm. The gradients of all
    tasks add up to that of one update with these responses. Weights, optimiser and gradients are
    left as they were.

    Parameters
    ----------
    learner : Learner
        Policy that is trained, and its loss.
    batch : Batch
        This rank's rollouts of a step, before its update.
    output : Output
        Period and prompts of the measurement.
    step : int
        Number of the step from 1.

    Returns
    -------
    TaskNorms
        Norms of the tasks in the batch; empty in all other steps.
    """
    periods = (output.equity_steps, learner.shaping.options.task_weights_adapt)
    if not any(every and step % every == 0 for every in periods):
        return TaskNorms({}, {})
    ranks = learner.ranks
    part = batch.rows(_rows_of_each_task(batch, output.equity_prompts, ranks))
    totals = learner.totals(part)
    found = TaskNorms({}, {})
    (tasks,), _ = ranks.gather_rows(part.tasks)
    for number in tasks.unique().tolist():
        rows = (part.tasks == number).nonzero()[:, 0]
        with _own_gradients(learner.policy) as weights:
            learner.accumulate_gradients(part.rows(rows), totals)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        task = batch.task_names[number]
        found.norms[task] = float(norm)
        if ranks.any(_has_advantage(part.rows(rows))):
            found.with_signal[task] = float(norm)
    return found


def _has_advantage(batch: Batch) -> bool:
    columns = (batch.advantages, batch.length_advantages)
    return any(bool(each.any()) for each in columns if each is not None)


def _rows_of_each_task(batch: Batch, prompts: int, ranks: Ranks) -> torch.Tensor:
    """Return the rows of the same number of prompts of every task that is there."""
    own = batch.groups if batch.numbers is None else batch.numbers
    (numbers, tasks), _ = ranks.gather_sorted(own, own, batch.tasks)
    prompts_of = [numbers[tasks == task].unique() for task in tasks.unique()]
    count = min(prompts, *(len(each) for each in prompts_of))
    kept = torch.cat([each[:count] for each in prompts_of])
    return torch.isin(own, kept).nonzero()[:, 0]


@contextmanager
def _own_gradients(policy: Policy) -> Iterator[list[torch.nn.Parameter]]:
    """Yield the trained weights without gradients, and restore their gradients afterwards."""
    weights = [weight for _, weight in trained_parameters(policy)]
    before = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield weights
    finally:
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
