"""Several reward components: their weights, their weighted sum, and the rounding error of that sum.

Sums that are equal in exact arithmetic can differ in the last bits, as .1 + .2 and .3 + 0 do. Every
sum therefore comes with the sum of its terms' magnitudes, from which :func:`rounding_margin`
computes how far apart two equal sums can be. A ranking treats sums within that margin as equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from array_api_compat import is_array_api_obj

from g2rpo._checks import require_shape
from g2rpo._libraries import device_of
from g2rpo._typing import Array, Namespace


def as_weights(xp: Namespace, weights: Sequence[float] | Array | None, columns: Array) -> Array:
    """Return weights (K,) of the dtype and device of ``columns`` (N, K); ones by default."""
    if columns.shape[1] == 0:
        raise ValueError("rewards must have at least one component, got shape (N, 0)")
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


def weighted_rewards(xp: Namespace, rewards: Array, weights: Array) -> tuple[Array, Array]:
    """Return the weighted sums (N,) of rewards (N, K) and of the terms' magnitudes.

    NaN counts as 0 unless all components are NaN. A weight of 0 leaves its component out,
    infinite rewards included.
    """
    absent = xp.isnan(rewards)
    counted = ~absent & xp.expand_dims(weights != 0, axis=0)
    total, size = weighted_sum(xp, xp.where(counted, rewards, 0.0), weights)
    return xp.where(xp.all(absent, axis=1), xp.nan, total), size


def weighted_sum(xp: Namespace, columns: Array, weights: Array) -> tuple[Array, Array]:
    """Return the weighted sums (N,) of columns (N, K) and of the terms' magnitudes.

    Terms are added in ascending order, so that rows of the same terms have equal bits for any order
    of the columns. No compiler fuses a product into an addition across the sort.
    """
    terms = xp.sort(columns * xp.expand_dims(weights, axis=0), axis=1)
    total, size = terms[:, 0], xp.abs(terms[:, 0])
    for k in range(1, terms.shape[1]):
        total, size = total + terms[:, k], size + xp.abs(terms[:, k])
    return total, size


def rounding_margin(xp: Namespace, size: Array, components: int, dtype: Array) -> Array:
    """Return the largest distance of sums that are equal in exact arithmetic.

    ``size`` is the sum of the terms' magnitudes. To first order the relative error of a sum is half
    an eps of ``dtype``, in which the rewards are given, and half an eps of the computation's dtype
    for the weight, the product and each addition. For two sums that is eps + (K + 1) eps; the
    second part is doubled, for rewards that were themselves computed.
    """
    computed = 2 * (components + 1) * float(xp.finfo(size.dtype).eps)
    return xp.where(xp.isfinite(size), size, 0.0) * (float(xp.finfo(dtype).eps) + computed)
