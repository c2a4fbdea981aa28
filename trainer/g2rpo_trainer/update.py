"""Update the policy: mini-batches of whole prompts, each one optimiser step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import g2rpo
from g2rpo_torch import reduce_totals

from .batch import Batch, micro_batch_rows
from .config import TrainConfig
from .distributed import Ranks
from .errors import RunError
from .logprobs import completion_predictions
from .metrics import Update, update_metrics
from .model.policy_model import Policy
from .optimizer import trained_parameters
from .progress import Progress
from .prompts.encoding import encode_prompts
from .record import Record
from .sharding import full_tensor, is_sharded, local_tensor, with_zero_gradients
from .token_weights import without_off_policy

Metrics = dict[str, float]


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: TrainConfig,
    progress: Progress,
    entropy_weights: Sequence[float] | None = None,
    ranks: Ranks = Ranks(),
) -> Metrics:
    """Take ``updates_per_batch`` optimiser steps on a batch of rollouts.

    Parameters
    ----------
    policy : Policy
        Policy to train.
    optimizer : torch.optim.Optimizer
        Optimiser with its learning rate already set.
    batch : Batch
        This rank's rollouts, or none: all responses of a prompt, next to each other. Mini-batches
        are divided over all ranks.
    config : TrainConfig
        Configuration; its rollout, length, entropy and optimization sections.
    progress : Progress
        Counter of skipped optimiser steps.
    entropy_weights : sequence of float, optional
        Weight of each task's entropy term; by default as the configuration says.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    dict of str to float
        Loss terms, clip ratios and gradient norm, averaged over the updates; the largest of maxima.
        Ratios and distances also by task.

    Raises
    ------
    RunError
        After too many gradients in a row that are not finite.
    """
    options = config.optimization
    made = []
    for number, part in enumerate(_mini_batches(batch, options.updates_per_batch, ranks)):
        found: dict[str, float] = {}
        if options.off_policy_mask_threshold is not None:
            # Before the first update the policy is that of the rollouts.
            now = batch_values(part, policy, config, ranks)[0] if number else part.logprobs
            part, found = without_off_policy(part, now, config, ranks)
        update = _step(policy, optimizer, part, config, progress, entropy_weights, ranks)
        made.append(update._replace(reported={**update.reported, **found}))
    metrics = update_metrics(made, batch.task_names)
    return {**metrics, "optimization/skipped_steps": float(progress.skipped_steps)}


def batch_loss(
    policy: Policy,
    batch: Batch,
    totals: g2rpo.BatchTotals,
    config: TrainConfig,
    entropy_weights: Sequence[float] | None = None,
) -> tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]:
    """Return the loss of one slice of a mini-batch, and its metrics.

    Parameters
    ----------
    policy : Policy
        Policy to run.
    batch : Batch
        The slice.
    totals : BatchTotals
        Totals of the whole mini-batch, so that the losses of its slices add up to its loss.
    config : TrainConfig
        Configuration; its rollout, length, entropy and optimization sections.
    entropy_weights : sequence of float, optional
        Weight of each task's entropy term; by default as the configuration says.
    """
    predictions = completion_predictions(
        policy,
        batch.prompts,
        batch.groups,
        batch.tokens,
        batch.mask,
        temperature=config.rollout.temperature,
    )
    tasks = batch.task_names
    bounds = batch.logprobs.new_tensor([config.entropy.of(task) for task in tasks])
    if entropy_weights is None:
        entropy_weights = [config.entropy.weight_of(task) for task in tasks]
    return predictions.loss(
        batch.logprobs,
        batch.advantages,
        batch.mask,
        batch.tasks,
        num_tasks=len(tasks),
        entropy_low=bounds[:, 0],
        entropy_high=bounds[:, 1],
        entropy_weight=batch.logprobs.new_tensor(entropy_weights),
        length_advantages=batch.length_advantages,
        length_weight=config.length.weight,
        ref_logprobs=batch.ref_logprobs,
        beta=config.optimization.beta,
        totals=totals,
        importance_weights=batch.importance_weights,
        options=config.optimization.loss_options(config.rollout.max_completion_length),
    )


def with_reference(
    batch: Batch,
    reference: Policy,
    config: TrainConfig,
    ranks: Ranks = Ranks(),
) -> Batch:
    """Return the batch with the log-probabilities of a reference policy."""
    with reference.as_reference():
        logprobs, _ = batch_values(batch, reference, config, ranks)
    return replace(batch, ref_logprobs=logprobs)


def batch_values(
    batch: Batch,
    policy: Policy,
    config: TrainConfig,
    ranks: Ranks = Ranks(),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies (N, T) under a policy, in micro-batches."""
    logprobs, entropies = torch.zeros_like(batch.logprobs), torch.zeros_like(batch.logprobs)
    micro_batches = micro_batch_rows(policy, batch, config.optimization.micro_batch_tokens)
    dummies = dummy_passes(policy, batch, len(micro_batches), ranks)
    for rows in micro_batches:
        part = batch.rows(rows)
        values = part.logprobs_of(policy, config.rollout.temperature)
        for table, some in zip((logprobs, entropies), values, strict=True):
            table[rows, : part.mask.shape[1]] = torch.where(part.mask, some, 0.0)
    for dummy in dummies:
        dummy.logprobs_of(policy, config.rollout.temperature)
    return logprobs, entropies


def _mini_batches(batch: Batch, updates: int, ranks: Ranks) -> Iterator[Batch]:
    """Yield the rollouts of consecutive prompts, divided as evenly as possible."""
    numbers = batch.groups if batch.numbers is None else batch.numbers
    prompts = ranks.max(int(numbers.amax()) + 1 if len(numbers) else 0)
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
    entropy_weights: Sequence[float] | None,
    ranks: Ranks,
) -> Update:
    """Accumulate the gradient of one mini-batch over its micro-batches, clip it, and step."""
    options = config.optimization
    totals = mini_batch_totals(batch, config, ranks)
    reports = accumulate_gradients(policy, batch, totals, config, entropy_weights, ranks)
    trained = trained_parameters(policy)
    weights = [weight for _, weight in trained]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    total_norm = torch.nn.utils.get_total_norm(gradients)
    norm = float(full_tensor(total_norm))
    # Before the gradients are clipped: by a norm of NaN all of them would be NaN.
    broken = None if norm < torch.inf else _first_not_finite(trained, ranks)
    with ranks.raise_on_all_ranks():
        is_usable = _is_usable(norm, broken, config, progress)
    if is_usable:
        torch.nn.utils.clip_grads_with_norm_(weights, options.max_grad_norm, total_norm)
        optimizer.step()
    optimizer.zero_grad()
    reported = {**ranks.reduce_by_name(reports.to_json()), "grad_norm": norm}
    tokens: Any = totals.task_tokens
    return Update(reported, tokens.tolist())


def mini_batch_totals(
    batch: Batch,
    config: TrainConfig,
    ranks: Ranks = Ranks(),
) -> g2rpo.BatchTotals:
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
    return totals if ranks.size == 1 else reduce_totals(totals)


def accumulate_gradients(
    policy: Policy,
    batch: Batch,
    totals: g2rpo.BatchTotals,
    config: TrainConfig,
    entropy_weights: Sequence[float] | None = None,
    ranks: Ranks = Ranks(),
) -> Reports:
    """Add the gradient of a mini-batch, all ranks' parts of it, to that of the weights.

    Returns
    -------
    Reports
        This rank's part of the loss terms and metrics.
    """
    # FSDP averages gradients over the ranks; the loss is a share of a global sum.
    scale = ranks.size if is_sharded(policy.model) else 1
    reports = Reports()
    micro_batches = micro_batch_rows(policy, batch, config.optimization.micro_batch_tokens)
    dummies = dummy_passes(policy, batch, len(micro_batches), ranks)
    for rows in micro_batches:
        part = batch.rows(rows)
        terms, metrics = batch_loss(policy, part, totals, config, entropy_weights)
        (scale * with_zero_gradients(policy.model, terms.total)).backward()
        reports.add(terms, metrics, part.mask.sum() / totals.tokens)
    for dummy in dummies:
        terms, _ = batch_loss(policy, dummy, totals, config, entropy_weights)
        (0 * with_zero_gradients(policy.model, terms.total)).backward()
    if not is_sharded(policy.model):
        ranks.all_reduce_gradients([weight for _, weight in trained_parameters(policy)])
    return reports


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
            is_mean = not name.endswith("/max") and not name.startswith("tasks/")
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


_DUMMY_RECORD = Record("?", "", "numerical", "dummy")


def dummy_passes(policy: Policy, batch: Batch, planned: int, ranks: Ranks) -> list[Batch]:
    """Return dummy batches so that every rank runs the same number of passes; a collective.

    Only for a sharded model, whose passes contain collectives.

    Parameters
    ----------
    policy : Policy
        Policy to run.
    batch : Batch
        Batch of the real passes; its columns are those of the dummies.
    planned : int
        Number of this rank's real passes.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    list of Batch
        One response of one token each.
    """
    if not is_sharded(policy.model):
        return []
    missing = ranks.max(planned) - planned
    return [_dummy(policy, batch)] * missing if missing else []


def _dummy(policy: Policy, like: Batch) -> Batch:
    columns: dict[str, Any] = {
        field.name: tensor.new_zeros((1, 1)[: tensor.ndim])
        for field in fields(like)
        if isinstance(tensor := getattr(like, field.name), torch.Tensor)
    }
    columns["tokens"] += policy.harmless_id
    columns["mask"] = torch.ones_like(columns["mask"])
    prompts = encode_prompts(policy, [_DUMMY_RECORD])
    columns |= {"prompts": prompts, "task_names": like.task_names}
    return Batch(**{"length_advantages": None, **columns})


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


def _is_usable(norm: float, broken: str | None, config: TrainConfig, progress: Progress) -> bool:
    """Tell whether a gradient of this norm changes the weights; count those that do not."""
    if norm < torch.inf:  # which NaN is not either
        progress.skipped_in_a_row = 0
        return True
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    limit = config.optimization.max_skipped_steps
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
