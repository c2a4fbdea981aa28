"""G²RPO on JAX: the names of the core, beside what only JAX can do."""

from importlib.util import find_spec

if find_spec("jax") is None:
    raise ImportError(
        'g2rpo_jax needs jax, which the core does not install; run: pip install "g2rpo[jax]"'
    )

from g2rpo import (
    ESTIMATORS,
    BatchTotals,
    EMAState,
    EntropyBounds,
    EntropyControl,
    LengthCalibration,
    LengthTarget,
    LengthTargets,
    LossTerms,
    adapt_entropy_weights,
    adapt_task_weights,
    batch_totals,
    calibrate_lengths,
    diagnostics,
    ema_grpo_advantages,
    encode_labels,
    entropy_from_logits,
    entropy_from_probs,
    entropy_penalty,
    g2rpo_loss,
    gaussian_advantages,
    gdpo_advantages,
    grpo_advantages,
    high_entropy_mask,
    kl_penalty,
    length_quantiles,
    length_reward,
    match_gaussian,
    off_policy_mask,
    policy_loss,
    register_estimator,
    rloo_advantages,
    sampler_weights,
    task_means,
)

from .collectives import GatheredRollouts, gather_rollouts, reduce_totals
from .logprobs import logprobs_and_entropy

__all__ = [
    "ESTIMATORS",
    "BatchTotals",
    "EMAState",
    "EntropyBounds",
    "EntropyControl",
    "GatheredRollouts",
    "LengthCalibration",
    "LengthTarget",
    "LengthTargets",
    "LossTerms",
    "adapt_entropy_weights",
    "adapt_task_weights",
    "batch_totals",
    "calibrate_lengths",
    "diagnostics",
    "ema_grpo_advantages",
    "encode_labels",
    "entropy_from_logits",
    "entropy_from_probs",
    "entropy_penalty",
    "g2rpo_loss",
    "gather_rollouts",
    "gaussian_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "high_entropy_mask",
    "kl_penalty",
    "length_quantiles",
    "length_reward",
    "logprobs_and_entropy",
    "match_gaussian",
    "off_policy_mask",
    "policy_loss",
    "reduce_totals",
    "register_estimator",
    "rloo_advantages",
    "sampler_weights",
    "task_means",
]
