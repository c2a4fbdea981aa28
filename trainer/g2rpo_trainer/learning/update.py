"""Change the policy: mini-batches of whole prompts, each one optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import g2rpo
from g2rpo_torch import reduce_totals
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.run.progress import Progress
from g2rpo_trainer.run.update_metrics import Update, update_metrics

from ..distributed.processes import Processes
from ..distributed.sharding import is_sharded, whole, with_every_gradient
from ..distributed.spare_passes import spare_passes
from ..model.policy_model import Policy
from ..passes.forward import completion_predictions
from .batch import Batch
from .microbatches import micro_batch_rows
from .optimizer import trained_parameters
from .reports import Reports
from .selection import near_policy

Metrics = dict[str, float]


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    progress: Progress,
) -> Metrics:
    """Take ``updates_per_batch`` optimiser steps on a batch of rollouts.

    Parameters
    ----------
    policy : Policy
        Whose weights change.
    optimizer : torch.optim.Optimizer
        With its learning rate already set.
    batch : Batch
        Whole prompts, those of one prompt next to each other. Of several processes each brings its
        own, or none, and the mini-batches are those of all together.
    config : TrainConfig
        Its rollout, length, entropy and optimization sections.
    progress : Progress
        Counts the optimiser steps that are skipped.

    Returns
    -------
    dict of str to float
        Loss terms, clip ratios and gradient norm, averaged over the updates; of maxima the largest.
        Ratios and distances also by task.

    Raises
    ------
    RunError
        After too many gradients in a row that are not finite.
    """
    options = config.optimization
    made = []
    for number, part in enumerate(_mini_batches(batch, options.updates_per_batch)):
        found: dict[str, float] = {}
        if options.off_policy_mask_threshold is not None:
            # Before the first update the policy is the one of the rollouts.
            now = evaluated(part, policy, config)[0] if number else part.logprobs
            part, found = near_policy(part, now, config)
        update = _step(policy, optimizer, part, config, progress)
        made.append(update._replace(reported={**update.reported, **found}))
    metrics = update_metrics(made, config.data.tasks)
    return {**metrics, "optimization/skipped_steps": float(progress.skipped_steps)}


def batch_loss(
    policy: Policy, batch: Batch, totals: g2rpo.BatchTotals, config: TrainConfig
) -> tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]:
    """Return the loss of one slice of a mini-batch, and its metrics.

    Parameters
    ----------
    policy : Policy
        Whose model is run.
    batch : Batch
        The slice.
    totals : BatchTotals
        Of the mini-batch; the losses of its slices then add up to its own.
    config : TrainConfig
        Its rollout, length, entropy and optimization sections.
    """
    predictions = completion_predictions(
        policy,
        batch.prompts,
        batch.groups,
        batch.tokens,
        batch.mask,
        temperature=config.rollout.temperature,
    )
    tasks = config.data.tasks
    bounds = batch.logprobs.new_tensor([config.entropy.of(task) for task in tasks])
    weights = batch.logprobs.new_tensor([config.entropy.weight_of(task) for task in tasks])
    return predictions.loss(
        batch.logprobs,
        batch.advantages,
        batch.mask,
        batch.tasks,
        num_tasks=len(tasks),
        entropy_low=bounds[:, 0],
        entropy_high=bounds[:, 1],
        entropy_weight=weights,
        length_advantages=batch.length_advantages,
        length_weight=config.length.weight,
        ref_logprobs=batch.ref_logprobs,
        beta=config.optimization.beta,
        totals=totals,
        importance_weights=batch.importance_weights,
        options=config.optimization.loss_options(config.rollout.max_completion_length),
    )


def with_reference(batch: Batch, reference: Policy, config: TrainConfig) -> Batch:
    """Return the batch with the log-probabilities of a reference policy."""
    with reference.as_reference():
        logprobs, _ = evaluated(batch, reference, config)
    return replace(batch, ref_logprobs=logprobs)


def evaluated(
    batch: Batch, policy: Policy, config: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies (N, T) under a policy, in micro-batches."""
    logprobs, entropies = torch.zeros_like(batch.logprobs), torch.zeros_like(batch.logprobs)
    divided = micro_batch_rows(policy, batch, config.optimization.micro_batch_tokens)
    spares = spare_passes(policy, batch, len(divided))
    for rows in divided:
        part = batch.rows(rows)
        values = part.logprobs_of(policy, config.rollout.temperature)
        for table, some in zip((logprobs, entropies), values, strict=True):
            table[rows, : part.mask.shape[1]] = torch.where(part.mask, some, 0.0)
    for spare in spares:
        spare.logprobs_of(policy, config.rollout.temperature)
    return logprobs, entropies


def _mini_batches(batch: Batch, updates: int) -> Iterator[Batch]:
    """Yield the rollouts of consecutive prompts, as evenly as their number allows."""
    numbers = batch.groups if batch.numbers is None else batch.numbers
    prompts = Processes.current().largest(int(numbers.amax()) + 1 if len(numbers) else 0)
    each = -(-prompts // updates)
    for start in range(0, prompts, each):
        chosen = (numbers >= start) & (numbers < start + each)
        yield batch.rows(chosen.nonzero()[:, 0])


def _step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    progress: Progress,
) -> Update:
    """Accumulate the gradient of one mini-batch over its micro-batches, clip it, and step."""
    options, processes = config.optimization, Processes.current()
    totals = mini_batch_totals(batch, config)
    reports = accumulate_gradients(policy, batch, totals, config)
    weights = [weight for _, weight in trained_parameters(policy)]
    norm = float(whole(torch.nn.utils.clip_grad_norm_(weights, options.max_grad_norm)))
    with processes.together():
        is_usable = _is_usable(norm, config, progress)
    if is_usable:
        optimizer.step()
    optimizer.zero_grad()
    reported = {**processes.add_up(reports.to_json()), "grad_norm": norm}
    tokens: Any = totals.task_tokens
    return Update(reported, tokens.tolist())


def mini_batch_totals(batch: Batch, config: TrainConfig) -> g2rpo.BatchTotals:
    """Count the tokens of a mini-batch, of which each process has a part.

    Each task's side of the band is judged on the entropies that the mini-batch was sampled with, so
    that every micro-batch pulls the same way without a pass of its own.
    """
    totals = g2rpo.batch_totals(
        batch.mask,
        entropies=batch.entropies,
        tasks=batch.tasks,
        num_tasks=len(config.data.tasks),
    )
    return reduce_totals(totals)


def accumulate_gradients(
    policy: Policy, batch: Batch, totals: g2rpo.BatchTotals, config: TrainConfig
) -> Reports:
    """Add the gradient of a mini-batch, all processes' parts of it, to that of the weights.

    Returns
    -------
    Reports
        What this process has of the loss terms and other metrics.
    """
    processes = Processes.current()
    # Divided weights get the mean of all processes' gradients.
    scale = processes.size if is_sharded(policy.model) else 1
    reports = Reports()
    divided = micro_batch_rows(policy, batch, config.optimization.micro_batch_tokens)
    spares = spare_passes(policy, batch, len(divided))
    for rows in divided:
        part = batch.rows(rows)
        terms, metrics = batch_loss(policy, part, totals, config)
        (scale * with_every_gradient(policy.model, terms.total)).backward()
        reports.add(terms, metrics, part.mask.sum() / totals.tokens)
    for spare in spares:
        terms, _ = batch_loss(policy, spare, totals, config)
        (0 * with_every_gradient(policy.model, terms.total)).backward()
    if not is_sharded(policy.model):
        processes.add_gradients([weight for _, weight in trained_parameters(policy)])
    return reports


def _is_usable(norm: float, config: TrainConfig, progress: Progress) -> bool:
    """Tell whether a gradient of this norm changes the weights; count those that do not."""
    if norm < torch.inf:  # which NaN is not either
        progress.skipped_in_a_row = 0
        return True
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    limit = config.optimization.max_skipped_steps
    if progress.skipped_in_a_row > limit:
        raise RunError(
            f"step {progress.step + 1}: the gradient is not finite ({norm}), "
            f"{progress.skipped_in_a_row} times in a row (optimization.max_skipped_steps is "
            f"{limit}); the weights are as the last finite gradient left them. In a new run lower "
            "optimization.learning_rate or optimization.max_grad_norm, or with model.dtype "
            "bfloat16 try float32"
        )
    return False
