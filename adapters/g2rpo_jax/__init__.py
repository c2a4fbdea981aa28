"""G²RPO on JAX: the names of the core, beside what only JAX can do."""

from g2rpo import (
    BatchTotals,
    EntropyBounds,
    LengthTarget,
    LossTerms,
    batch_totals,
    encode_labels,
    entropy_from_logits,
    entropy_from_probs,
    entropy_penalty,
    g2rpo_loss,
    gaussian_advantages,
    kl_penalty,
    length_reward,
    match_gaussian,
    policy_loss,
    task_means,
)

__all__ = [
    "BatchTotals",
    "EntropyBounds",
    "LengthTarget",
    "LossTerms",
    "batch_totals",
    "encode_labels",
    "entropy_from_logits",
    "entropy_from_probs",
    "entropy_penalty",
    "g2rpo_loss",
    "gaussian_advantages",
    "kl_penalty",
    "length_reward",
    "match_gaussian",
    "policy_loss",
    "task_means",
]
