"""G²RPO on PyTorch: the names of the core, beside what only PyTorch can do."""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ImportError(
        'g2rpo_torch needs torch, which the core does not install; run: pip install "g2rpo[torch]"'
    )

from g2rpo import (
    ESTIMATORS,
    LOSSES,
    BatchTotals,
    EMAState,
    EntropyBounds,
    LengthTarget,
    LengthTargets,
    LossOptions,
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
    register_loss,
    rloo_advantages,
    sampler_weights,
    task_means,
)

from ._module_heads import LinearHead, linear_head
from .collectives import GatheredRollouts, gather_rollouts, reduce_totals
from .fused_loss import fused_g2rpo_loss
from .logprobs import logprobs_and_entropy

__all__ = [
    "ESTIMATORS",
    "LOSSES",
    "BatchTotals",
    "EMAState",
    "EntropyBounds",
    "GatheredRollouts",
    "LengthTarget",
    "LengthTargets",
    "LinearHead",
    "LossOptions",
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
    "fused_g2rpo_loss",
    "g2rpo_loss",
    "gather_rollouts",
    "gaussian_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "high_entropy_mask",
    "kl_penalty",
    "length_quantiles",
    "length_reward",
    "linear_head",
    "logprobs_and_entropy",
    "match_gaussian",
    "off_policy_mask",
    "policy_loss",
    "reduce_totals",
    "register_estimator",
    "register_loss",
    "rloo_advantages",
    "sampler_weights",
    "task_means",
]
