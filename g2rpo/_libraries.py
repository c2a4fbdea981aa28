"""The three things that the Array API standard leaves to each library.

A library is named only once one of its arrays is at hand: nothing is imported here.
"""

from __future__ import annotations

import sys
from typing import Any

from array_api_compat import device, is_jax_array, is_numpy_array, is_torch_array

from g2rpo._typing import Array, Namespace


def stop_gradient(array: Array) -> Array:
    """Return ``array`` as a constant to differentiation; without gradients, as it is."""
    if is_torch_array(array):
        return array.detach()
    if is_jax_array(array):
        return sys.modules["jax"].lax.stop_gradient(array)
    return array


def device_of(array: Array) -> Any:
    """Return where to create arrays that meet ``array``.

    For JAX that is nowhere in particular: an uncommitted array follows the one it meets, whereas
    the sharding of ``array`` would not fit another size.
    """
    return None if is_jax_array(array) else device(array)


def inverse_permutation(xp: Namespace, order: Array) -> Array:
    """Return the permutation that undoes ``order``, by scattering where the library can."""
    positions = xp.arange(order.shape[0], dtype=order.dtype, device=device_of(order))
    if is_torch_array(order):
        return xp.empty_like(order).scatter_(0, order, positions)
    if is_jax_array(order):
        return xp.zeros_like(order).at[order].set(positions, unique_indices=True)
    if is_numpy_array(order):
        inverse = xp.empty_like(order)
        inverse[order] = positions
        return inverse
    return xp.argsort(order, stable=True)
