"""How hard each task pulls at the weights: the norm of its own gradient, exactly, on a few prompts.

Advantages of equal size are meant to give tasks an equal say. Whether they do shows in the gradient
alone, which also depends on lengths, on the shaping terms and on the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

import g2rpo
from g2rpo.diagnostics import equity
from g2rpo.run.description import RunDescription

from .batch import Batch
from .microbatches import micro_batches
from .policy_model import Policy
from .update import batch_loss


def gradient_equity(
    policy: Policy, batch: Batch, description: RunDescription, step: int
) -> dict[str, float]:
    """Measure each task's own gradient and how unequal they are, every ``output.equity_steps``.

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
    description : RunDescription
        Of the run, as it is for this step.
    step : int
        From 1.

    Returns
    -------
    dict of str to float
        ``equity/grad_norm/<task>``, and ``equity/ratio``: the largest over the smallest. Empty in
        all other steps.
    """
    every = description.output.equity_steps
    if not every or step % every:
        return {}
    part = batch.rows(_rows_of_each_task(batch, description.output.equity_prompts))
    totals = g2rpo.batch_totals(
        part.mask,
        entropies=part.entropies,
        tasks=part.tasks,
        num_tasks=len(description.data.tasks),
    )
    norms = {}
    for number in part.tasks.unique().tolist():
        rows = (part.tasks == number).nonzero()[:, 0]
        budget = description.optimization.micro_batch_tokens
        with _own_gradients(policy) as weights:
            for piece in micro_batches(policy, part.rows(rows), budget):
                terms, _ = batch_loss(policy, piece, totals, description)
                terms.total.backward()
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norms[description.data.tasks[number]] = float(torch.nn.utils.get_total_norm(gradients))
    metrics = {f"equity/grad_norm/{task}": norm for task, norm in norms.items()}
    return metrics | {"equity/ratio": equity(norms)}


def _rows_of_each_task(batch: Batch, prompts: int) -> torch.Tensor:
    """Return the rows of the same number of prompts of every task that is there."""
    prompts_of = {
        task: batch.groups[batch.tasks == task].unique() for task in batch.tasks.unique().tolist()
    }
    count = min(prompts, *(len(groups) for groups in prompts_of.values()))
    kept = torch.cat([groups[:count] for groups in prompts_of.values()])
    return torch.isin(batch.groups, kept).nonzero()[:, 0]


@contextmanager
def _own_gradients(policy: Policy) -> Iterator[list[torch.nn.Parameter]]:
    """Yield the trained weights without gradients, and give them back those they had."""
    weights = [weight for weight in policy.model.parameters() if weight.requires_grad]
    before = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    try:
        yield weights
    finally:
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
