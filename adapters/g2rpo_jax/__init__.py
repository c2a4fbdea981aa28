"""What only JAX can do for G²RPO; the formulas are those of `g2rpo`, on JAX's arrays."""

from importlib.util import find_spec

if find_spec("jax") is None:
    raise ImportError(
        'g2rpo_jax needs jax, which the core does not install; run: pip install "g2rpo[jax]"'
    )

from .collectives import GatheredRollouts, gather_rollouts, reduce_totals
from .logprobs import logprobs_and_entropy

__all__ = [
    "GatheredRollouts",
    "gather_rollouts",
    "logprobs_and_entropy",
    "reduce_totals",
]
