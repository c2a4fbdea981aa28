# ruff: noqa: E402 (a missing package is named before anything needs it)
"""The parts of G²RPO that need JAX; `g2rpo` has the formulas and takes JAX arrays."""

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
