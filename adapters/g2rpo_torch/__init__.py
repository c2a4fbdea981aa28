# ruff: noqa: E402 (a missing package is named before anything needs it)
"""The parts of G²RPO that need PyTorch; `g2rpo` has the formulas and takes PyTorch tensors."""

from g2rpo._extras import require

require("g2rpo_torch", "torch", extra="torch")

from ._linear_head import LinearHead, linear_head
from .collectives import GatheredRollouts, gather_rollouts, reduce_totals
from .fused_loss import fused_g2rpo_loss
from .logprobs import logprobs_and_entropy

__all__ = [
    "GatheredRollouts",
    "LinearHead",
    "fused_g2rpo_loss",
    "gather_rollouts",
    "linear_head",
    "logprobs_and_entropy",
    "reduce_totals",
]
