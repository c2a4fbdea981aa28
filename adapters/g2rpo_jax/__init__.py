# ruff: noqa: E402 (a missing package is named before anything needs it)
"""What only JAX can do for G²RPO; the formulas are those of `g2rpo`, on JAX's arrays."""

from g2rpo._extras import require

require("g2rpo_jax", "jax", extra="jax")

from .collectives import GatheredRollouts, gather_rollouts, reduce_totals
from .logprobs import logprobs_and_entropy

__all__ = [
    "GatheredRollouts",
    "gather_rollouts",
    "logprobs_and_entropy",
    "reduce_totals",
]
