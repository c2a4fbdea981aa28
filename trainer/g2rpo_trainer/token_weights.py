"""Weights of tokens in the surrogates: importance ratios, high entropies, off-policy responses.

Each restricts or weighs the surrogates of a step; the entropy and KL terms stay over all tokens.
"""

from __future__ import annotations

import torch

import g2rpo
from g2rpo_trainer.config import Rollout

from .batch import Batch
from .distributed import Ranks


def importance_weights(
    logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor | None,
    mask: torch.Tensor,
    options: Rollout,
) -> torch.Tensor | None:
    """Return the weight of each token by the ratio of the policy to vLLM, (N, T).

    Parameters
    ----------
    logprobs : Tensor (N, T)
        Log-probabilities under the policy.
    sampler_logprobs : Tensor (N, T) or None
        Log-probabilities under vLLM; None if the policy itself has sampled.
    mask : Tensor (N, T), bool
        True at the tokens of the responses.
    options : Rollout
        Mode and bounds of the ratio.

    Returns
    -------
    Tensor (N, T) or None
        None if the policy itself has sampled, or the mode is ``off``.
    """
    if sampler_logprobs is None or options.vllm_importance_sampling_mode == "off":
        return None
    return _weights_and_metrics(logprobs, sampler_logprobs, mask, options)[0]


def sampler_metrics(
    logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor | None,
    mask: torch.Tensor,
    options: Rollout,
    ranks: Ranks = Ranks(),
) -> dict[str, float]:
    """Return metrics of the distance between vLLM and the policy; none if the policy has sampled.

    A collective. The first arguments are those of :func:`importance_weights`, for the responses of
    this rank; the metrics are those of all ranks. With the mode ``off`` the ratio is that of each
    token.
    """
    if sampler_logprobs is None:
        return {}
    sums: dict[str, float] = {}
    _, metrics = _weights_and_metrics(logprobs, sampler_logprobs, mask, options)
    tokens = int(mask.sum())
    is_by_token = options.vllm_importance_sampling_mode.startswith(("token", "off"))
    units = tokens if is_by_token else int(mask.any(-1).sum())
    extremes = ("sampler/ratio/min", "sampler/ratio/max")
    by_token = ("sampler/kl", "sampler/frac_masked")
    if tokens:
        for name, value in metrics.items():
            count = tokens if name in by_token else units
            sums[name] = float(value) * (1 if name in extremes else count)
    found = ranks.reduce_by_name({**sums, "tokens": tokens, "units": units})
    tokens, units = found.pop("tokens"), found.pop("units")
    return {
        name: value if name in extremes else value / (tokens if name in by_token else units)
        for name, value in found.items()
    }


def high_entropy_tokens(
    batch: Batch,
    share: float,
    ranks: Ranks = Ranks(),
) -> tuple[Batch, dict[str, float]]:
    """Restrict a step's batch to the tokens of the highest entropies, task by task.

    Parameters
    ----------
    batch : Batch
        This rank's rollouts; the quantiles are those of all ranks' tokens.
    share : float
        Share of each task's tokens, as in :func:`g2rpo.high_entropy_mask`; 1 changes nothing.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    batch : Batch
    metrics : dict of str to float
        ``frac_high_entropy``, the share of tokens that remain, also by task.
    """
    if share == 1:
        return batch, {}
    tasks_of_tokens = batch.tasks[:, None].expand(batch.mask.shape)[batch.mask]
    (entropies, labels), own = ranks.gather_rows(batch.entropies[batch.mask], tasks_of_tokens)
    everything = torch.ones_like(entropies, dtype=torch.bool)[:, None]
    kept = g2rpo.high_entropy_mask(entropies[:, None], everything, labels, share=share)
    counts = torch.zeros_like(batch.mask)
    counts[batch.mask] = kept[own, 0]
    tasks = batch.task_names
    shares, present = g2rpo.task_means(kept.double(), everything, labels, len(tasks))
    metrics = {"frac_high_entropy": float(kept.double().mean())}
    for task, part, is_there in zip(tasks, shares.tolist(), present.tolist(), strict=True):
        if is_there:
            metrics[f"frac_high_entropy/{task}"] = part
    return batch.restricted(counts), metrics


def without_off_policy(
    batch: Batch,
    logprobs: torch.Tensor,
    threshold: float,
    length_weight: float,
    ranks: Ranks = Ranks(),
) -> tuple[Batch, dict[str, float]]:
    """Restrict a mini-batch to responses that :func:`g2rpo.off_policy_mask` keeps.

    Parameters
    ----------
    batch : Batch
        This rank's part of a mini-batch.
    logprobs : Tensor (N, T)
        Log-probabilities under the policy before the update.
    threshold : float
        Largest mean log-ratio of sampler to policy [nats].
    length_weight : float
        Weight of the length advantages in the sum of both, which decides.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    batch : Batch
    metrics : dict of str to float
        ``off_policy/masked_ratio``, the share of all ranks' responses that are masked.
    """
    advantages = batch.advantages
    if batch.length_advantages is not None:
        advantages = advantages + length_weight * batch.length_advantages
    sampled = batch.logprobs if batch.sampler_logprobs is None else batch.sampler_logprobs
    counts = g2rpo.off_policy_mask(logprobs, sampled, advantages, batch.mask, threshold=threshold)
    masked = (batch.mask & ~counts).any(-1)
    share = ranks.sum(int(masked.sum())) / max(1, ranks.sum(len(batch)))
    return batch.restricted(counts), {"off_policy/masked_ratio": share}


def _weights_and_metrics(
    logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, mask: torch.Tensor, options: Rollout
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    values = (logprobs, sampler_logprobs, mask)
    if options.vllm_importance_sampling_mode == "off":
        return g2rpo.sampler_weights(*values, level="token", mode="truncate", high=None)
    level, mode = options.vllm_importance_sampling_mode.split("_")
    return g2rpo.sampler_weights(
        *values,
        level=level,  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        low=options.vllm_importance_sampling_clip_min,
        high=options.vllm_importance_sampling_clip_max,
    )
