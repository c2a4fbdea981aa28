"""Which tokens of a batch the surrogates are over."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import g2rpo
from g2rpo_torch import gather_rollouts
from g2rpo_trainer.config import TrainConfig

from ..distributed.processes import Processes
from .batch import Batch


def high_entropy_tokens(
    batch: Batch, share: float, tasks: Sequence[str]
) -> tuple[Batch, dict[str, float]]:
    """Restrict a step's batch to the tokens of the highest entropies, task by task.

    Parameters
    ----------
    batch : Batch
        This process's part; the quantiles are those of all processes' tokens.
    share : float
        As :func:`g2rpo.high_entropy_mask` takes it; 1 changes nothing.
    tasks : sequence of str
        Names of the tasks.

    Returns
    -------
    batch : Batch
    metrics : dict of str to float
        ``frac_high_entropy``, the share of tokens that remain, also by task.
    """
    if share == 1:
        return batch, {}
    tasks_of_tokens = batch.tasks[:, None].expand(batch.mask.shape)[batch.mask]
    (entropies, labels), own = gather_rollouts(batch.entropies[batch.mask], tasks_of_tokens)
    everything = torch.ones_like(entropies, dtype=torch.bool)[:, None]
    kept = g2rpo.high_entropy_mask(entropies[:, None], everything, labels, share=share)
    counts = torch.zeros_like(batch.mask)
    counts[batch.mask] = kept[own, 0]
    shares, present = g2rpo.task_means(kept.double(), everything, labels, len(tasks))
    metrics = {"frac_high_entropy": float(kept.double().mean())}
    for task, part, is_there in zip(tasks, shares.tolist(), present.tolist(), strict=True):
        if is_there:
            metrics[f"frac_high_entropy/{task}"] = part
    return batch.restricted(counts), metrics


def near_policy(
    batch: Batch, logprobs: torch.Tensor, config: TrainConfig
) -> tuple[Batch, dict[str, float]]:
    """Restrict a mini-batch to responses that :func:`g2rpo.off_policy_mask` keeps.

    Parameters
    ----------
    batch : Batch
        This process's part of a mini-batch.
    logprobs : Tensor (N, T)
        Log-probabilities under the policy as it is before the update.
    config : TrainConfig
        Its optimization section has the threshold. Of a response that is pushed by two terms, the
        sum of their weighted advantages decides.

    Returns
    -------
    batch : Batch
    metrics : dict of str to float
        ``off_policy/masked_ratio``, the share of all processes' responses that are masked.
    """
    threshold = config.optimization.off_policy_mask_threshold
    assert threshold is not None
    advantages = batch.advantages
    if batch.length_advantages is not None:
        advantages = advantages + config.length.weight * batch.length_advantages
    sampled = batch.logprobs if batch.sampler_logprobs is None else batch.sampler_logprobs
    counts = g2rpo.off_policy_mask(logprobs, sampled, advantages, batch.mask, threshold=threshold)
    masked = (batch.mask & ~counts).any(-1)
    numbers = {"masked": int(masked.sum()), "responses": len(batch)}
    numbers = Processes.current().add_up(numbers)
    share = numbers["masked"] / max(1, numbers["responses"])
    return batch.restricted(counts), {"off_policy/masked_ratio": share}
