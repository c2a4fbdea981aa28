"""Update the policy: mini-batches of whole prompts, each one optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import g2rpo
from g2rpo_torch import reduce_totals

from .advantages import Shaping
from .batch import Batch, batch_values, dummy_passes, micro_batch_rows
from .config import Optimization, Rollout
from .distributed import Ranks
from .errors import RunError
from .logprobs import completion_predictions
from .metrics import Reports, Update, update_metrics
from .model.policy_model import Policy
from .optimizer import trained_parameters
from .progress import Progress
from .sharding import full_tensor, is_sharded, local_tensor, with_zero_gradients
from .token_weights import without_off_policy

Metrics = dict[str, float]


@dataclass(frozen=True)
class Learner:
    """A policy with its optimiser, its loss and the reference of the KL term.

    Attributes
    ----------
    policy : Policy
        Policy to train.
    optimizer : torch.optim.Optimizer
        Optimiser of its parameters, with the learning rate already set.
    shaping : Shaping
        Entropy bounds and current entropy weights of the tasks, and the weight of the length term.
    options : Optimization
        Loss, micro-batches, and limits of gradients.
    rollout : Rollout
        Temperature and longest response of the rollouts.
    reference : Policy or None
        Reference of the KL term.
    ranks : Ranks
        Ranks that train together.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    shaping: Shaping
    options: Optimization
    rollout: Rollout
    reference: Policy | None = None
    ranks: Ranks = Ranks()

    def update(self, batch: Batch, progress: Progress) -> Metrics:
        """Take ``updates_per_batch`` optimiser steps on a batch of rollouts.

        Parameters
        ----------
        batch : Batch
            This rank's rollouts, or none: all responses of a prompt, next to each other.
            Mini-batches are divided over all ranks.
        progress : Progress
            Counts skipped optimiser steps.

        Returns
        -------
        dict of str to float
            Loss terms, clip ratios and gradient norm, averaged over the updates; the largest of
            maxima. Ratios and distances also by task.

        Raises
        ------
        RunError
            After too many gradients in a row that are not finite.
        """
        threshold = self.options.off_policy_mask_threshold
        made = []
        for number, part in enumerate(self._mini_batches(batch)):
            found: dict[str, float] = {}
            if threshold is not None:
                # Before the first update the policy is that of the rollouts.
                now = self.values(part)[0] if number else part.logprobs
                length_weight = self.shaping.options.length_weight
                part, found = without_off_policy(part, now, threshold, length_weight, self.ranks)
            update = self._step(part, progress)
            made.append(update._replace(reported={**update.reported, **found}))
        metrics = update_metrics(made, batch.task_names)
        return {**metrics, "optimization/skipped_steps": float(progress.skipped_steps)}

    def with_reference(self, batch: Batch) -> Batch:
        """Return the batch with the log-probabilities of the reference policy, if there is one."""
        if self.reference is None:
            return batch
        with self.reference.as_reference():
            return replace(batch, ref_logprobs=self.values(batch, self.reference)[0])

    def values(
        self, batch: Batch, policy: Policy | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies (N, T) under a policy, by default the own one."""
        budget, temperature = self.options.micro_batch_tokens, self.rollout.temperature
        return batch_values(policy or self.policy, batch, budget, temperature, self.ranks)

    def loss(
        self, batch: Batch, totals: g2rpo.BatchTotals
    ) -> tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]:
        """Return the loss of one slice of a mini-batch, and its metrics.

        Parameters
        ----------
        batch : Batch
            The slice.
        totals : BatchTotals
            Totals of the whole mini-batch, so that the losses of its slices add up to its loss.
        """
        options, rollout, shaping = self.options, self.rollout, self.shaping
        predictions = completion_predictions(
            self.policy,
            batch.prompts,
            batch.groups,
            batch.tokens,
            batch.mask,
            temperature=rollout.temperature,
        )
        bounds = batch.logprobs.new_tensor(shaping.entropy_bounds.tolist())
        return predictions.loss(
            batch.logprobs,
            batch.advantages,
            batch.mask,
            batch.tasks,
            num_tasks=len(batch.task_names),
            entropy_low=bounds[:, 0],
            entropy_high=bounds[:, 1],
            entropy_weight=batch.logprobs.new_tensor(shaping.entropy_weights.tolist()),
            length_advantages=batch.length_advantages,
            length_weight=shaping.options.length_weight,
            ref_logprobs=batch.ref_logprobs,
            beta=options.beta,
            totals=totals,
            importance_weights=batch.importance_weights,
            options=options.loss_options(rollout.max_completion_length),
        )

    def totals(self, batch: Batch) -> g2rpo.BatchTotals:
        """Count the tokens of a mini-batch, of which each rank has a part.

        The entropy band is applied to each task's mean entropy at sampling time, so that all
        micro-batches agree on the sign of the penalty without another pass.
        """
        totals = g2rpo.batch_totals(
            batch.mask,
            entropies=batch.entropies,
            tasks=batch.tasks,
            num_tasks=len(batch.task_names),
        )
        return totals if self.ranks.size == 1 else reduce_totals(totals)

    def accumulate_gradients(self, batch: Batch, totals: g2rpo.BatchTotals) -> Reports:
        """Add the gradient of a mini-batch, all ranks' parts of it, to that of the weights.

        Returns
        -------
        Reports
            This rank's part of the loss terms and metrics.
        """
        policy = self.policy
        # FSDP averages gradients over the ranks; the loss is a share of a global sum.
        scale = self.ranks.size if is_sharded(policy.model) else 1
        reports = Reports()
        micro_batches = micro_batch_rows(policy, batch, self.options.micro_batch_tokens)
        dummies = dummy_passes(policy, batch, len(micro_batches), self.ranks)
        for rows in micro_batches:
            part = batch.rows(rows)
            terms, metrics = self.loss(part, totals)
            (scale * with_zero_gradients(policy.model, terms.total)).backward()
            reports.add(terms, metrics, part.mask.sum() / totals.tokens)
        for dummy in dummies:
            terms, _ = self.loss(dummy, totals)
            (0 * with_zero_gradients(policy.model, terms.total)).backward()
        if not is_sharded(policy.model):
            self.ranks.all_reduce_gradients([weight for _, weight in trained_parameters(policy)])
        return reports

    def _mini_batches(self, batch: Batch) -> Iterator[Batch]:
        """Yield the rollouts of consecutive prompts, divided as evenly as possible."""
        numbers = batch.groups if batch.numbers is None else batch.numbers
        prompts = self.ranks.max(int(numbers.amax()) + 1 if len(numbers) else 0)
        each = -(-prompts // self.options.updates_per_batch)
        for start in range(0, prompts, each):
            chosen = (numbers >= start) & (numbers < start + each)
            yield batch.rows(chosen.nonzero()[:, 0])

    def _step(self, batch: Batch, progress: Progress) -> Update:
        """Accumulate the gradient of one mini-batch over its micro-batches, clip it, and step."""
        totals = self.totals(batch)
        reports = self.accumulate_gradients(batch, totals)
        trained = trained_parameters(self.policy)
        weights = [weight for _, weight in trained]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        total_norm = torch.nn.utils.get_total_norm(gradients)
        norm = float(full_tensor(total_norm))
        # Before the gradients are clipped: by a norm of NaN all of them would be NaN.
        broken = None if norm < torch.inf else _first_not_finite(trained, self.ranks)
        with self.ranks.raise_on_all_ranks():
            is_usable = _is_usable(norm, broken, self.options.max_skipped_steps, progress)
        if is_usable:
            max_norm = self.options.max_grad_norm
            torch.nn.utils.clip_grads_with_norm_(weights, max_norm, total_norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        reported = {**self.ranks.reduce_by_name(reports.to_json()), "grad_norm": norm}
        tokens: Any = totals.task_tokens
        return Update(reported, tokens.tolist())


def _first_not_finite(
    trained: Sequence[tuple[str, torch.nn.Parameter]], ranks: Ranks
) -> str | None:
    """Return the name of the first parameter with a gradient that is not finite; a collective."""
    found = len(trained)
    for number, (_, weight) in enumerate(trained):
        if weight.grad is not None and not local_tensor(weight.grad).isfinite().all():
            found = number
            break
    first = min(ranks.gather_objects(found))
    return trained[first][0] if first < len(trained) else None


def _is_usable(norm: float, broken: str | None, limit: int, progress: Progress) -> bool:
    """Tell whether a gradient of this norm changes the weights; count those that do not."""
    if norm < torch.inf:  # which NaN is not either
        progress.skipped_in_a_row = 0
        return True
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row > limit:
        place = f"first that of {broken}" if broken else "its norm is too large for float32"
        raise RunError(
            f"step {progress.step + 1}: the gradient is not finite ({norm}), "
            f"{progress.skipped_in_a_row} times in a row (optimization.max_skipped_steps is "
            f"{limit}), {place}; the weights are as the last finite gradient left them. In a new "
            "run lower optimization.learning_rate or optimization.max_grad_norm, with model.dtype "
            "bfloat16 try float32, and on a GPU model.attention: eager"
        )
    return False
