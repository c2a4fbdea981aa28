"""The ratio of the policy to vLLM, where vLLM samples: weights of the surrogates, and metrics."""

from __future__ import annotations

import torch

import g2rpo
from g2rpo_trainer.config import Rollout

from .distributed import Ranks
from .sampling import Completions


def importance_weights(completions: Completions, options: Rollout) -> torch.Tensor | None:
    """Return the weight of each token in the surrogates, (N, T).

    None where the policy itself has sampled, or the mode is ``off``.
    """
    is_off = options.vllm_importance_sampling_mode == "off"
    if completions.sampler_logprobs is None or is_off:
        return None
    return _corrected(completions, options)[0]


def sampler_metrics(
    completions: Completions,
    options: Rollout,
    ranks: Ranks = Ranks(),
) -> dict[str, float]:
    """Return how far vLLM is from the policy; nothing where the policy itself has sampled.

    Parameters
    ----------
    completions : Completions
        Responses of this rank. Every rank must call this, and gets the metrics of all.
    options : Rollout
        Mode and bounds of the ratio; with the mode ``off`` the ratio is that of each token.
    ranks : Ranks
        Ranks that train together.
    """
    if completions.sampler_logprobs is None:
        return {}
    sums: dict[str, float] = {}
    _, metrics = _corrected(completions, options)
    tokens = int(completions.mask.sum())
    is_by_token = options.vllm_importance_sampling_mode.startswith(("token", "off"))
    units = tokens if is_by_token else int(completions.mask.any(-1).sum())
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


def _corrected(
    completions: Completions, options: Rollout
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    values = (completions.logprobs, completions.sampler_logprobs, completions.mask)
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
