"""Several reward components: their weights, and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import device, is_array_api_obj

from g2rpo._checks import require_shape
from g2rpo._typing import Array, Namespace


def as_weights(xp: Namespace, weights: Sequence[float] | Array | None, columns: Array) -> Array:
    """Return weights (K,) of the dtype and device of ``columns`` (N, K); ones by default."""
    if weights is None:
        return xp.ones(columns.shape[1], dtype=columns.dtype, device=device(columns))
    if is_array_api_obj(weights):
        weights = xp.astype(weights, columns.dtype)
    else:
        weights = xp.asarray(weights, dtype=columns.dtype, device=device(columns))
    require_shape("component_weights", weights, (columns.shape[1],))
    return weights


def weights_if_components(
    xp: Namespace, weights: Sequence[float] | Array | None, rewards: Array
) -> Array | None:
    """Return the weights of rewards (N, K), and None for rewards (N,), which must have none."""
    if rewards.ndim == 2:
        return as_weights(xp, weights, rewards)
    if weights is not None:
        raise ValueError(
            f"component_weights need rewards of shape (N, K), got shape {tuple(rewards.shape)}"
        )
    return None


def weighted_rewards(xp: Namespace, rewards: Array, weights: Array) -> Array:
    """Return the weighted sums (N,) of rewards (N, K); NaN counts as 0 unless all are NaN.

    A weight of 0 leaves its component out, infinite rewards included.
    """
    absent = xp.isnan(rewards)
    weights = xp.broadcast_to(xp.expand_dims(weights, axis=0), rewards.shape)
    counted = ~absent & (weights != 0)
    products = xp.where(counted, weights * xp.where(counted, rewards, 0.0), 0.0)
    return xp.where(xp.all(absent, axis=1), xp.nan, xp.sum(products, axis=1))
