"""Ratios of the policy to another one, from log-probabilities, without overflow."""

from __future__ import annotations

from g2rpo._aggregation import at_least_one
from g2rpo._checks import widen
from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array, Namespace

#: Log-ratios are clamped to +-20: beyond, the ratio says "far apart" and no more.
MAX_LOG_RATIO = 20.0


def log_ratios(xp: Namespace, logprobs: Array, other: Array, mask: Array) -> tuple[Array, Array]:
    """Return the log-probabilities and their difference to constant others, 0 where masked out."""
    logprobs = widen(xp, logprobs)
    # Both are replaced before the difference: a later `where` would still let NaN into gradients.
    new = xp.where(mask, logprobs, 0.0)
    old = xp.where(mask, xp.astype(stop_gradient(other), logprobs.dtype), 0.0)
    return new, new - old


def clamped(xp: Namespace, log_ratio: Array) -> Array:
    """Return the log-ratio within +-20, without a gradient beyond."""
    return xp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def response_log_ratio(xp: Namespace, log_ratio: Array, logprobs: Array, mask: Array) -> Array:
    """Give every token the mean log-ratio of its response, with its own gradient (GSPO-token).

    The sum over a response with one advantage then has the gradient of the mean, and advantages by
    token keep theirs apart.
    """
    log_ratio = stop_gradient(log_ratio)
    tokens = at_least_one(xp, xp.sum(xp.astype(mask, log_ratio.dtype), axis=1, keepdims=True))
    mean = xp.broadcast_to(xp.sum(log_ratio, axis=1, keepdims=True) / tokens, log_ratio.shape)
    return with_slope(xp, xp.where(mask, mean, 0.0), 1.0, logprobs)


def with_slope(xp: Namespace, value: Array, slope: Array | float, logprobs: Array) -> Array:
    """Return a constant value with a constant derivative by each log-probability."""
    finite = xp.where(xp.isfinite(logprobs), logprobs, 0.0)
    return value + slope * (finite - stop_gradient(finite))
