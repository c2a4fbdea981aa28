"""The one thing about gradients that the Array API standard does not cover."""

from __future__ import annotations

import sys

from array_api_compat import is_jax_array, is_torch_array

from g2rpo._typing import Array


def stop_gradient(array: Array) -> Array:
    """Return ``array`` as a constant to differentiation; libraries without gradients are as is."""
    if is_torch_array(array):
        return array.detach()
    if is_jax_array(array):
        # An array of JAX exists, so JAX is loaded: naming it here imports nothing.
        return sys.modules["jax"].lax.stop_gradient(array)
    return array
