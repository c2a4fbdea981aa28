"""G²RPO: Gaussian group-relative policy optimisation for multimodal reinforcement learning.

Every function takes and returns arrays of any Array API library: what comes in goes out.
"""

from g2rpo.advantages import gaussian_advantages
from g2rpo.entropy import (
    EntropyBounds,
    entropy_from_logits,
    entropy_from_probs,
    entropy_penalty,
    task_means,
)
from g2rpo.labels import encode_labels
from g2rpo.length import LengthTarget, length_reward
from g2rpo.losses import kl_penalty, policy_loss
from g2rpo.objective import BatchTotals, LossTerms, batch_totals, g2rpo_loss
from g2rpo.transport import match_gaussian

__version__ = "0.1.0"

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
