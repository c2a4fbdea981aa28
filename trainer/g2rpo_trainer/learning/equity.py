"""How hard each task pulls at the weights: the norm of its own gradient, exactly, on a few prompts.

Advantages of equal size are meant to give tasks an equal say. Whether they do shows in the gradient
alone, which also depends on lengths, on the shaping terms and on the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from g2rpo_torch import gather_rollouts
from g2rpo_trainer.config import TrainConfig

from ..distributed.processes import Processes
from ..distributed.sharding import whole
from ..model.policy_model import Policy
from .batch import Batch
from .optimizer import trained_parameters
from .update import accumulate_gradients, mini_batch_totals


class TaskNorms(NamedTuple):
    """The norm of each measured task's own gradient.

    Attributes
    ----------
    norms : dict of str to float
        By task; empty where nothing was measured.
    with_signal : dict of str to float
        Those of tasks whose rewards or lengths pull: the others have the gradients of entropy and
        KL alone, which no task weight can change.
    """

    norms: dict[str, float]
    with_signal: dict[str, float]


def gradient_norms(policy: Policy, batch: Batch, config: TrainConfig, step: int) -> TaskNorms:
    """Measure each task's own gradient, every ``output.equity_steps`` or ``task_weights.adapt``.

    It takes ``output.equity_prompts`` prompts of each task; where one has fewer in the batch, all
    tasks have that many, for a mean over fewer samples has a larger norm. The gradients of all
    tasks add up to that of one update with these responses. Weights, optimiser and gradients are
    left as they were.

    Parameters
    ----------
    policy : Policy
        Whose gradient it is.
    batch : Batch
        The responses of a step, before its update.
    config : TrainConfig
        Of the run, as it is for this step.
    step : int
        From 1.

    Returns
    -------
    TaskNorms
        Of the tasks that are there; empty in all other steps.
    """
    periods = (config.output.equity_steps, config.task_weights.adapt)
    if not any(every and step % every == 0 for every in periods):
        return TaskNorms({}, {})
    part = batch.rows(_rows_of_each_task(batch, config.output.equity_prompts))
    totals = mini_batch_totals(part, config)
    found = TaskNorms({}, {})
    for number in _tasks_of_all(part).tolist():
        rows = (part.tasks == number).nonzero()[:, 0]
        with _own_gradients(policy) as weights:
            accumulate_gradients(policy, part.rows(rows), totals, config)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = whole(torch.nn.utils.get_total_norm(gradients))
        task = config.data.tasks[number]
        found.norms[task] = float(norm)
        if Processes.current().any(_has_signal(part.rows(rows))):
            found.with_signal[task] = float(norm)
    return found


def _has_signal(batch: Batch) -> bool:
    columns = (batch.advantages, batch.length_advantages)
    return any(bool(each.any()) for each in columns if each is not None)


def _rows_of_each_task(batch: Batch, prompts: int) -> torch.Tensor:
    """Return the rows of the same number of prompts of every task that is there."""
    own = batch.groups if batch.numbers is None else batch.numbers
    (numbers, tasks), _ = Processes.current().gather(own, own, batch.tasks)
    prompts_of = [numbers[tasks == task].unique() for task in tasks.unique()]
    count = min(prompts, *(len(each) for each in prompts_of))
    kept = torch.cat([each[:count] for each in prompts_of])
    return torch.isin(own, kept).nonzero()[:, 0]


def _tasks_of_all(batch: Batch) -> torch.Tensor:
    """Return the numbers of the tasks that any process has."""
    (tasks,), _ = gather_rollouts(batch.tasks)
    return tasks.unique()


@contextmanager
def _own_gradients(policy: Policy) -> Iterator[list[torch.nn.Parameter]]:
    """Yield the trained weights without gradients, and give them back those they had."""
    weights = [weight for _, weight in trained_parameters(policy)]
    before = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield weights
    finally:
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
