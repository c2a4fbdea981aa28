"""What the Array API standard leaves to each library, or says more slowly than it can.

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


def gather(xp: Namespace, array: Array, indices: Array) -> Array:
    """Return ``array`` (N,) at ``indices`` that lie in [0, N).

    Indices in general may be negative or out of bounds, which PyTorch's and JAX's ``take`` spend
    more time on than on gathering.
    """
    if is_torch_array(array):
        return array.index_select(0, indices)
    if is_jax_array(array):
        return array.at[indices].get(mode="promise_in_bounds")
    return xp.take(array, indices)


def sorted_order(xp: Namespace, labels: Array, keys: Array) -> Array:
    """Return the indices that sort by ``labels`` and then by ``keys``, both (N,), without NaN.

    Elements that are equal in both come in any order.
    """
    if is_jax_array(labels):
        return xp.lexsort((keys, labels))
    if is_torch_array(keys) and keys.dtype == xp.float32:
        return xp.argsort(_packed(xp, labels, keys))
    order = xp.argsort(keys, stable=False)
    return gather(xp, order, xp.argsort(gather(xp, labels, order), stable=True))


def row_order(xp: Namespace, keys: Array) -> Array:
    """Return the indices that sort each row of ``keys`` (B, n), without NaN."""
    if is_torch_array(keys) and keys.dtype == xp.float32:
        keys = _ordered_bits(xp, keys)
    return xp.argsort(keys, axis=1, stable=False)


def _packed(xp: Namespace, labels: Array, keys: Array) -> Array:
    """Return 64-bit integers in the order of labels, then of single-precision keys.

    PyTorch sorts integers, and what is nearly sorted already, several times faster than floats,
    and once is enough.
    """
    order = xp.argsort(labels, stable=True)
    labels = gather(xp, labels, order)
    rises = xp.concat([xp.zeros_like(order[:1]), xp.astype(labels[1:] != labels[:-1], xp.int64)])
    run = xp.empty_like(order).scatter_(0, order, rises.cumsum(0))
    return run * 2**32 + _ordered_bits(xp, keys)


def _ordered_bits(xp: Namespace, keys: Array) -> Array:
    """Return 32-bit integers in the order of single-precision tensors."""
    # The bits of a float are in the order of its magnitude; -0.0 + 0.0 is 0.0.
    bits = (keys + 0.0).view(xp.int32)
    return xp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def running_sum(xp: Namespace, values: Array) -> Array:
    """Return 0 and the running sums of integers (N,), in their own dtype; shape (N + 1,)."""
    if is_torch_array(values):
        return sys.modules["torch"].nn.functional.pad(values.cumsum(0, dtype=values.dtype), (1, 0))
    return xp.cumulative_sum(values, dtype=values.dtype, include_initial=True)


def run_starts(xp: Namespace, run: Array) -> Array:
    """Return where each of the runs 0, 1, ... begins in the sorted ``run`` (N,); shape (N + 1,).

    Runs that do not occur begin, like the end of the last one, at N. Members are counted by
    scattering where the library can: searching costs a logarithm.
    """
    size = run.shape[0]
    if is_torch_array(run):
        counts = xp.zeros_like(run).scatter_add_(0, run, xp.ones_like(run))
    elif is_jax_array(run):
        counts = xp.zeros_like(run).at[run].add(1, indices_are_sorted=True)
    elif is_numpy_array(run):
        counts = xp.bincount(run, minlength=size)
    else:
        positions = xp.arange(size + 1, dtype=run.dtype, device=device_of(run))
        return xp.astype(xp.searchsorted(run, positions), run.dtype)
    return running_sum(xp, counts)


def places_of(xp: Namespace, labels: Array) -> Array:
    """Return a place in [0, N) for each label (N,), the same for equal labels only."""
    if is_torch_array(labels):
        labels = labels.contiguous()
    return xp.searchsorted(xp.sort(labels), labels)


def sum_by_place(xp: Namespace, values: Array, places: Array) -> Array:
    """Return for each element the sum of the integers (N,) at its place, places in [0, N)."""
    if is_torch_array(values):
        return xp.zeros_like(values).scatter_add_(0, places, values).index_select(0, places)
    if is_jax_array(values):
        return gather(xp, xp.zeros_like(values).at[places].add(values), places)
    if is_numpy_array(values):
        sums = xp.zeros_like(values)
        xp.add.at(sums, places, values)
        return sums[places]
    order = xp.argsort(places)
    opens = xp.take(places, order)
    first, stop = (xp.searchsorted(opens, places, side=side) for side in ("left", "right"))
    running = running_sum(xp, xp.take(values, order))
    return xp.take(running, stop) - xp.take(running, first)


def is_eager(array: Array) -> bool:
    """Return whether what is computed from the array is computed at once, for good."""
    if is_torch_array(array):
        torch = sys.modules["torch"]
        # Subclasses may stand for tensors without values, or for parts of them.
        return type(array) is torch.Tensor and not torch.compiler.is_compiling()
    return is_numpy_array(array)


def is_readable(array: Array) -> bool:
    """Return whether the array's values can be looked at without waiting for a device."""
    return is_eager(array) and str(device(array)) == "cpu"


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
