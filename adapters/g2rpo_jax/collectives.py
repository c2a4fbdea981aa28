"""Collectives for statistics of the global batch: gather rollouts, add up totals.

They are used inside of ``jax.shard_map`` (or ``vmap`` with an axis name), where every device has
its own part of the batch. Elsewhere, under ``jax.jit``, sharded arrays are global already.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from g2rpo import BatchTotals

__all__ = ["GatheredRollouts", "gather_rollouts", "reduce_totals"]

AxisName: TypeAlias = str | tuple[str, ...]


class GatheredRollouts(NamedTuple):
    """The rollouts of all devices along the mesh axes, in the order of their shards.

    Attributes
    ----------
    arrays : tuple of Array
        The arrays with the rows of every device; without gradient.
    local : Array
        int32, shape (N,): the rows of this device.
    """

    arrays: tuple[Array, ...]
    local: Array


def gather_rollouts(*arrays: Array, axis_name: AxisName) -> GatheredRollouts:
    """Gather the per-rollout vectors of all devices, bit for bit.

    Advantages and other statistics of the result are those of the global batch: a group's rollouts,
    and a task's, may be on several devices.

    Parameters
    ----------
    *arrays : Array
        Rewards, group and task labels, lengths: arrays with one row per rollout, shapes (N, ...)
        with this device's N. Labels must be global: number prompts across devices.
    axis_name : str or tuple of str
        The mesh axis, or axes, that rollouts are sharded over, as in their ``PartitionSpec``.

    Returns
    -------
    GatheredRollouts
        The arrays with all rows, and the rows of this device.

    Raises
    ------
    TypeError
        If there is no array, or an argument is no ``jax.Array``.
    ValueError
        If the arrays differ in length.

    Notes
    -----
    One ``all_gather`` per array. For JAX the result varies over the mesh axes, although it is equal
    on all devices: to return a value of it as replicated, apply ``jax.lax.pmax``, for instance.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from g2rpo import grpo_advantages
    >>> def advantages(rewards, groups):
    ...     (rewards, groups), local = gather_rollouts(rewards, groups, axis_name="data")
    ...     return grpo_advantages(rewards, groups, scale="none")[local]
    >>> shards = jnp.array([[0.0, 2.0], [3.0, 4.0]]), jnp.array([[7, 7], [8, 7]])
    >>> jax.vmap(advantages, axis_name="data")(*shards)  # as on two devices
    Array([[-2.,  0.],
           [ 0.,  2.]], dtype=float32)
    """
    rows = _rows_of(arrays)
    whole = tuple(lax.all_gather(lax.stop_gradient(x), axis_name, tiled=True) for x in arrays)
    start = lax.axis_index(axis_name) * rows
    return GatheredRollouts(whole, start + jnp.arange(rows, dtype=start.dtype))


def reduce_totals(totals: BatchTotals, /, *, axis_name: AxisName) -> BatchTotals:
    """Return the totals of the whole mini-batch from those of each device.

    With them, the losses of :func:`g2rpo.g2rpo_loss` on all devices sum to that of the whole
    mini-batch, and so do their gradients: add them with ``jax.lax.psum``.

    Parameters
    ----------
    totals : BatchTotals
        Totals of this device's rollouts, from :func:`g2rpo.batch_totals`.
    axis_name : str or tuple of str
        The mesh axis, or axes, that rollouts are sharded over.

    Returns
    -------
    BatchTotals
        Totals of all devices, equal on every device.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from g2rpo import batch_totals
    >>> mask = jnp.array([[[True, True]], [[True, False]]])  # of two devices
    >>> count = lambda mask: reduce_totals(batch_totals(mask), axis_name="data").tokens
    >>> jax.vmap(count, axis_name="data")(mask)
    Array([3., 3.], dtype=float32)
    """
    tokens, sequences, task_tokens, task_entropy = totals
    entropy = None if task_entropy is None else task_entropy * task_tokens
    counts = (tokens, sequences, task_tokens, entropy)
    tokens, sequences, task_tokens, entropy = lax.psum(counts, axis_name)
    if entropy is not None:
        # A task without tokens has a sum of 0 too.
        entropy = entropy / jnp.maximum(task_tokens, 1.0)
    return BatchTotals(tokens, sequences, task_tokens, entropy)


def _rows_of(arrays: tuple[Array, ...]) -> int:
    """Return the number of rollouts of this device."""
    if not arrays:
        raise TypeError("gather_rollouts needs at least one array")
    for index, array in enumerate(arrays):
        if not isinstance(array, jax.Array):
            raise TypeError(f"arrays[{index}] must be a jax.Array, got {type(array).__name__}")
        if array.ndim == 0:
            raise ValueError(f"arrays[{index}] must have shape (N, ...), got ()")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"arrays[{index}] must have as many rows as arrays[0], {arrays[0].shape[0]}, "
                f"got shape {array.shape}"
            )
    return arrays[0].shape[0]
