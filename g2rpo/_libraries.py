"""Operations that the Array API standard lacks, or for which a library has a faster one.

PyTorch and JAX are not imported: a library is taken from ``sys.modules`` once one of its arrays is
given.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from array_api_compat import device, is_jax_array, is_numpy_array, is_torch_array

from g2rpo._typing import Array, Namespace


def stop_gradient(array: Array) -> Array:
    """Return ``array`` as a constant to differentiation, where the library has gradients."""
    if is_torch_array(array):
        return array.detach()
    if is_jax_array(array):
        return sys.modules["jax"].lax.stop_gradient(array)
    return array


def device_of(array: Array) -> Any:
    """Return the device on which to create arrays to combine with ``array``.

    None for JAX: it moves an uncommitted array to the device of the other operand, whereas the
    sharding of ``array`` would not fit another size.
    """
    return None if is_jax_array(array) else device(array)


def to_numpy(array: Array) -> Any:
    """Copy an array of any library to the host, as an array of NumPy."""
    if is_torch_array(array):
        array = array.detach().cpu()
    return np.asarray(array)


def index_dtype(xp: Namespace, array: Array) -> Array:
    """Return the default integer dtype of the library, in which it counts and indexes."""
    return xp.int64 if is_torch_array(array) else xp.arange(0, device=device_of(array)).dtype


def gather(xp: Namespace, array: Array, indices: Array) -> Array:
    """Return ``array`` (N,) at ``indices`` that lie in [0, N).

    The ``take`` of PyTorch and JAX spends most of its time on negative and out-of-bounds indices.
    """
    if is_torch_array(array):
        return array.index_select(0, indices)
    if is_jax_array(array):
        return array.at[indices].get(mode="promise_in_bounds")
    return xp.take(array, indices)


def sorted_order(xp: Namespace, labels: Array, keys: Array) -> Array:
    """Return the indices that sort by ``labels`` and then by ``keys``, both (N,), without NaN.

    Elements that are equal in both have an arbitrary order.
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

    PyTorch sorts integers several times faster than floats, and one sort is enough.
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
    """Return the start of each run 0, 1, ... in the sorted numbers ``run`` (N,); shape (N + 1,).

    Runs that do not occur start at N. Members are counted by scattering where the library can:
    O(N), where a search is O(N log N).
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


def as_bytes(xp: Namespace, flags: Array) -> Array:
    """Return booleans as 8-bit integers, without a copy where the library can."""
    if is_torch_array(flags) or is_numpy_array(flags):
        return flags.view(xp.int8)
    return xp.astype(flags, xp.int8)


def places_of(xp: Namespace, labels: Array) -> tuple[Array, int]:
    """Return an index for each label (N,), equal for equal labels only, and the number of indices.

    Readable labels from 0 to N - 1 are their own indices; others are sorted.
    """
    size = labels.shape[0]
    integer = index_dtype(xp, labels)
    labels = xp.astype(labels, integer, copy=False)
    if is_readable(labels) and int(xp.min(labels)) >= 0:
        highest = int(xp.max(labels))
        if highest < size:
            return labels, highest + 1
    if is_torch_array(labels):
        labels = labels.contiguous()
    return xp.astype(xp.searchsorted(xp.sort(labels), labels), integer, copy=False), size


def sum_by_place(xp: Namespace, values: Array, places: Array, size: int) -> Array:
    """Return the sums of the integers (N,) at each of ``size`` indices; 0 for an unused index."""
    if is_torch_array(values):
        return values.new_zeros(size).scatter_add_(0, places, values)
    if is_jax_array(values):
        return xp.zeros(size, dtype=values.dtype).at[places].add(values)
    if is_numpy_array(values):
        sums = xp.zeros(size, dtype=values.dtype)
        xp.add.at(sums, places, values)
        return sums
    order = xp.argsort(places)
    bounds = xp.searchsorted(xp.take(places, order), xp.arange(size + 1, dtype=places.dtype))
    running = xp.take(running_sum(xp, xp.take(values, order)), bounds)
    return running[1:] - running[:-1]


def is_eager(array: Array) -> bool:
    """Return whether operations on the array run at once, and are neither traced nor deferred."""
    if is_torch_array(array):
        torch = sys.modules["torch"]
        # Subclasses may be without values (fake tensors) or shards (DTensor).
        return type(array) is torch.Tensor and not torch.compiler.is_compiling()
    return is_numpy_array(array)


def is_readable(array: Array) -> bool:
    """Return whether the array's values can be read without waiting for a device."""
    return is_eager(array) and str(device(array)) == "cpu"


def divide_columns(xp: Namespace, values: Array, divisors: Array) -> Array:
    """Return ``values`` (M, B) over ``divisors`` (B,), one per column."""
    divisors = xp.expand_dims(divisors, axis=0)
    if is_jax_array(values):
        # XLA would multiply by the inverse of a divisor that a column shares.
        divisors = xp.where(values != 0, divisors, 1.0)
    return values / divisors


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
