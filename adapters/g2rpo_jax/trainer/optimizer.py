"""AdamW behind a clipped gradient, with the learning rate of each step as an argument."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from g2rpo.run.sections import Optimization
from g2rpo_jax.policy.decoder import Params


class AdamW(NamedTuple):
    """What of the optimiser is compiled; its moments are an argument.

    Attributes
    ----------
    max_grad_norm : float
        Norm that gradients are clipped to.
    weight_decay : float
    """

    max_grad_norm: float
    weight_decay: float

    @classmethod
    def of(cls, options: Optimization) -> AdamW:
        """Read it from a description's section."""
        return cls(options.max_grad_norm, options.weight_decay)

    def start(self, params: Params) -> Any:
        """Return moments of 0, placed as the weights are."""
        # The counter too lies where a step leaves it: otherwise the second step is compiled anew.
        everywhere = jax.tree.leaves(params)[0].sharding
        return jax.device_put(self._transformation().init(params), everywhere)

    def step(
        self, params: Params, moments: Any, gradient: Params, learning_rate: float
    ) -> tuple[Params, Any, Array]:
        """Take one step.

        Parameters
        ----------
        params, moments
            Before the step.
        gradient : Params
            As computed.
        learning_rate : float
            Of this step.

        Returns
        -------
        params, moments
            After the step; those before it if the gradient is not finite.
        norm : Array (), float32
            Of the gradient before clipping.
        """
        return _step(self, params, moments, gradient, jnp.asarray(learning_rate, jnp.float32))

    def _transformation(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.max_grad_norm),
            optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
            optax.add_decayed_weights(self.weight_decay),
        )


@partial(jax.jit, static_argnames="optimizer")
def _step(
    optimizer: AdamW, params: Params, moments: Any, gradient: Params, learning_rate: Array
) -> tuple[Params, Any, Array]:
    norm = optax.tree.norm(gradient)
    # Optax takes powers of the number of steps, an integer.
    with jax.numpy_dtype_promotion("standard"):
        direction, after = optimizer._transformation().update(gradient, moments, params)
    stepped = jax.tree.map(lambda weight, d: weight - learning_rate * d, params, direction)
    usable = jnp.isfinite(norm)
    chosen = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), (stepped, after), (params, moments)
    )
    return *chosen, norm
