"""G²RPO: Gaussian group-relative policy optimisation for multimodal reinforcement learning.

Every function takes and returns arrays of any Array API library: what comes in goes out.
"""

from g2rpo import diagnostics
from g2rpo._kl import kl_penalty
from g2rpo.advantages import (
    ESTIMATORS,
    EMAState,
    ema_grpo_advantages,
    gaussian_advantages,
    gdpo_advantages,
    grpo_advantages,
    opo_advantages,
    pass_at_k_advantages,
    register_estimator,
    reinforce_plus_plus_advantages,
    rloo_advantages,
)
from g2rpo.calibration import calibrate_lengths, length_quantiles
from g2rpo.entropy import (
    EntropyBounds,
    adapt_entropy_weights,
    entropy_from_logits,
    entropy_from_probs,
    entropy_penalty,
    task_means,
)
from g2rpo.high_entropy import high_entropy_mask
from g2rpo.labels import encode_labels
from g2rpo.length import LengthTarget, LengthTargets, length_reward
from g2rpo.loss_options import LossOptions
from g2rpo.loss_types import LOSSES, register_loss
from g2rpo.losses import policy_loss
from g2rpo.metrics import rollout_metrics
from g2rpo.objective import BatchTotals, LossTerms, batch_totals, g2rpo_loss
from g2rpo.off_policy import off_policy_mask, sampler_weights
from g2rpo.shaping import Advantages, Shaping
from g2rpo.shaping_options import LengthCalibration, ShapingOptions
from g2rpo.task_weights import adapt_task_weights, weigh_tasks
from g2rpo.transport import has_signal, match_gaussian

__version__ = "0.1.0"

__all__ = [
    "ESTIMATORS",
    "LOSSES",
    "Advantages",
    "BatchTotals",
    "EMAState",
    "EntropyBounds",
    "LengthCalibration",
    "LengthTarget",
    "LengthTargets",
    "LossOptions",
    "LossTerms",
    "Shaping",
    "ShapingOptions",
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
    "gaussian_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "has_signal",
    "high_entropy_mask",
    "kl_penalty",
    "length_quantiles",
    "length_reward",
    "match_gaussian",
    "off_policy_mask",
    "opo_advantages",
    "pass_at_k_advantages",
    "policy_loss",
    "register_estimator",
    "register_loss",
    "reinforce_plus_plus_advantages",
    "rloo_advantages",
    "rollout_metrics",
    "sampler_weights",
    "task_means",
    "weigh_tasks",
]
