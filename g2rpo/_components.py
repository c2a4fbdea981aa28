"""Several reward components: their weights, and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import is_array_api_obj

from g2rpo._checks import require_shape
from g2rpo._libraries import device_of
from g2rpo._rounding import rounded
from g2rpo._typing import Array, Namespace


def as_weights(xp: Namespace, weights: Sequence[float] | Array | None, columns: Array) -> Array:
    """Return weights (K,) of the dtype and device of ``columns`` (N, K); ones by default."""
    if weights is None:
        return xp.ones(columns.shape[1], dtype=columns.dtype, device=device_of(columns))
    if is_array_api_obj(weights):
        weights = xp.astype(weights, columns.dtype)
    else:
        weights = xp.asarray(weights, dtype=columns.dtype, device=device_of(columns))
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
    components = []
    for k in range(rewards.shape[1]):
        counted = ~absent[:, k] & (weights[k] != 0)
        components.append(xp.where(counted, rewards[:, k], 0.0))
    total = weighted_sum(xp, components, weights)
    return xp.where(xp.all(absent, axis=1), xp.nan, total)


def weighted_sum(xp: Namespace, columns: Sequence[Array], weights: Array) -> Array:
    """Return the weighted sum of K columns (N,), bit-equal for equal rows."""
    total = xp.zeros_like(columns[0])
    for k, column in enumerate(columns):
        total = total + rounded(xp, weights[k] * column)
    return total
