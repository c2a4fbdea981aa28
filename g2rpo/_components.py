"""Several reward components: their weights, and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import device, is_array_api_obj

from g2rpo._checks import require_shape
from g2rpo._typing import Array, Namespace


def as_weights(
    xp: Namespace, weights: Sequence[float] | Array | None, rewards: Array
) -> Array | None:
    """Return weights (K,) of the dtype and device of ``rewards``; None if those are (N,)."""
    if rewards.ndim == 1:
        if weights is not None:
            raise ValueError(
                f"component_weights need rewards of shape (N, K), got shape {tuple(rewards.shape)}"
            )
        return None
    if weights is None:
        return xp.ones(rewards.shape[1], dtype=rewards.dtype, device=device(rewards))
    if is_array_api_obj(weights):
        weights = xp.astype(weights, rewards.dtype)
    else:
        weights = xp.asarray(weights, dtype=rewards.dtype, device=device(rewards))
    require_shape("component_weights", weights, (rewards.shape[1],))
    return weights


def weighted_rewards(xp: Namespace, rewards: Array, weights: Array) -> Array:
    """Return the weighted sums (N,) of rewards (N, K); NaN counts as 0 unless all are NaN.

    A weight of 0 leaves its component out, infinite rewards included.
    """
    absent = xp.isnan(rewards)
    weights = xp.broadcast_to(xp.expand_dims(weights, axis=0), rewards.shape)
    counted = ~absent & (weights != 0)
    products = xp.where(counted, weights * xp.where(counted, rewards, 0.0), 0.0)
    return xp.where(xp.all(absent, axis=1), xp.nan, xp.sum(products, axis=1))
