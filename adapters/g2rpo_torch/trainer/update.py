"""Change the policy: mini-batches of whole prompts, each one optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

import g2rpo
from g2rpo.run.description import RunDescription

from .forward import completion_logprobs, completion_predictions
from .policy_model import Policy
from .prompts import Inputs, select_rows

Metrics = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """N rollouts with all that the loss needs; every tensor but the prompts has N rows.

    Attributes
    ----------
    prompts : dict of str to Tensor
        Model inputs of P prompts.
    groups : Tensor (N,), int64
        Row of the prompt that each rollout answers.
    tokens, mask, logprobs, entropies : Tensor (N, T)
        As sampled, see :class:`~g2rpo_torch.trainer.rollout.Completions`.
    advantages : Tensor (N,)
        Of the rewards.
    length_advantages : Tensor (N,) or None
        Of the length rewards.
    tasks : Tensor (N,), int64
        Number of each rollout's task.
    ref_logprobs : Tensor (N, T) or None
        Log-probabilities under the reference policy, where there is a KL term.
    """

    prompts: Inputs
    groups: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor
    length_advantages: torch.Tensor | None
    tasks: torch.Tensor
    ref_logprobs: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def rows(self, rows: torch.Tensor | slice) -> Batch:
        """Return some of the rollouts with their prompts, cut to their longest response."""
        tensors = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        longest = int(tensors["mask"].sum(-1).max())
        tensors = {
            name: tensor[:, :longest] if tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        }
        kept, tensors["groups"] = tensors["groups"].unique(return_inverse=True)
        return replace(self, prompts=select_rows(self.prompts, kept), **tensors)

    @torch.no_grad()
    def with_reference(self, reference: Policy, temperature: float) -> Batch:
        """Return the batch with the log-probabilities of a reference policy."""
        logprobs, _ = completion_logprobs(
            reference,
            self.prompts,
            self.groups,
            self.tokens,
            self.mask,
            temperature=temperature,
        )
        return replace(self, ref_logprobs=logprobs)

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the rollouts in parts of at most ``size``."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    description: RunDescription,
) -> Metrics:
    """Take ``updates_per_batch`` optimiser steps on a batch of rollouts.

    Parameters
    ----------
    policy : Policy
        Whose weights change.
    optimizer : torch.optim.Optimizer
        With its learning rate already set.
    batch : Batch
        Whole prompts, those of one prompt next to each other.
    description : RunDescription
        Its rollout, length, entropy and optimization sections.

    Returns
    -------
    dict of str to float
        Loss terms, clip ratios and gradient norm, averaged over the updates.
    """
    updates = description.optimization.updates_per_batch
    prompts_each = -(-description.rollout.prompts_per_step // updates)
    size = prompts_each * description.rollout.num_generations
    gathered = [_step(policy, optimizer, part, description) for part in batch.split(size)]
    return {name: sum(each[name] for each in gathered) / len(gathered) for name in gathered[0]}


def _step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    description: RunDescription,
) -> Metrics:
    """Accumulate the gradient of one mini-batch over its micro-batches, clip it, and step."""
    # Each task's side of the band is judged on the entropies that the mini-batch was sampled with,
    # so that every micro-batch pulls the same way without a pass of its own.
    totals = g2rpo.batch_totals(
        batch.mask,
        entropies=batch.entropies,
        tasks=batch.tasks,
        num_tasks=len(description.data.tasks),
    )
    gathered: Metrics = {}
    for part in batch.split(description.optimization.micro_batch_size):
        terms, metrics = _loss(policy, part, totals, description)
        terms.total.backward()
        # Loss terms of micro-batches add up; the other metrics are means over tokens.
        share = float(part.mask.sum()) / float(totals.tokens)
        contributions = {f"loss/{name}": term.detach() for name, term in terms._asdict().items()}
        contributions |= {name: share * value for name, value in metrics.items()}
        for name, value in contributions.items():
            gathered[name] = gathered.get(name, 0.0) + float(value)
    norm = torch.nn.utils.clip_grad_norm_(
        policy.model.parameters(), description.optimization.max_grad_norm
    )
    optimizer.step()
    optimizer.zero_grad()
    return {**gathered, "grad_norm": float(norm)}


def _loss(
    policy: Policy, batch: Batch, totals: g2rpo.BatchTotals, description: RunDescription
) -> tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]:
    predictions = completion_predictions(
        policy,
        batch.prompts,
        batch.groups,
        batch.tokens,
        batch.mask,
        temperature=description.rollout.temperature,
    )
    tasks = description.data.tasks
    bounds = batch.logprobs.new_tensor([description.entropy.of(task) for task in tasks])
    options = description.optimization
    is_constant = options.aggregation == "constant"
    longest = description.rollout.max_completion_length if is_constant else None
    return predictions.loss(
        batch.logprobs,
        batch.advantages,
        batch.mask,
        batch.tasks,
        entropy_low=bounds[:, 0],
        entropy_high=bounds[:, 1],
        entropy_weight=description.entropy.weight,
        length_advantages=batch.length_advantages,
        length_weight=description.length.weight,
        ref_logprobs=batch.ref_logprobs,
        beta=options.beta,
        totals=totals,
        epsilon=options.epsilon,
        epsilon_high=options.epsilon_high,
        dual_clip=options.dual_clip,
        loss_type=options.loss_type,
        aggregation=options.aggregation,
        max_completion_length=longest,
    )
