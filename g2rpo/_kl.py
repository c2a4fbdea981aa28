"""Log-ratios of policies, without overflow, and estimates of their KL divergence from them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from g2rpo._checks import namespace_of, require_choice, require_floating, require_shape, widen
from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array, Namespace

KLKind: TypeAlias = Literal["k1", "k2", "k3", "k1+", "k3+", "k3-weighted"]

#: Bound of log-ratios in magnitude; exp(20) is a large ratio, and finite in float32.
MAX_LOG_RATIO = 20.0


def kl_penalty(
    logprobs: Array,
    ref_logprobs: Array,
    /,
    *,
    kind: KLKind = "k3-weighted",
    old_logprobs: Array | None = None,
) -> Array:
    r"""Estimate KL(policy || reference) from the sampled tokens, token by token.

    With d = log of policy minus log of reference, and the ratio r of the policy to the one that
    sampled the tokens:

    ============  ==================  ==================  ==================================
    kind          value               gradient by log π   expected gradient on policy
    ============  ==================  ==================  ==================================
    k1            d                   1                   0
    k2            d²/2                d                   that of KL(policy || reference)
    k3            exp(-d) + d - 1     1 - exp(-d)         that of KL(reference || policy)
    k1+, k3+      as k1, k3           d                   that of KL(policy || reference)
    k3-weighted   r·(exp(-d) + d - 1) r·d                 that of KL(policy || reference)
    ============  ==================  ==================  ==================================

    Parameters
    ----------
    logprobs, ref_logprobs : array
        Log-probabilities of the sampled tokens, same shape, floating point.
    kind : {"k1", "k2", "k3", "k1+", "k3+", "k3-weighted"}, optional
        The estimator.
    old_logprobs : array, optional
        Log-probabilities under the policy that sampled the tokens, for ``"k3-weighted"``; by
        default the policy itself has sampled, and r is 1.

    Returns
    -------
    array
        The shape of ``logprobs``, in nats; half precision gives float32. Differences are clamped
        to +-20.

    Raises
    ------
    TypeError
        If an argument is no array or not real floating point, or ``old_logprobs`` come with a kind
        that does not use them.
    ValueError
        If shapes differ or ``kind`` is unknown.

    Notes
    -----
    k1 and k3 are unbiased in their value only. The value of k2 is biased, its gradient is right on
    policy. ``"k3-weighted"`` is unbiased in value and gradient, also off policy; on policy its
    gradient is that of k2, token by token.

    References
    ----------
    Schulman, "Approximating KL divergence" (2020); the weighted form: DeepSeek-V3.2,
    arXiv:2512.02556; k1+ and k3+ are verl's.

    Examples
    --------
    >>> import numpy as np
    >>> kl_penalty(np.asarray([-1.0, -1.0]), np.asarray([-1.0, -2.0])).round(4)
    array([0.    , 0.3679])
    """
    xp = namespace_of(logprobs=logprobs, ref_logprobs=ref_logprobs, old_logprobs=old_logprobs)
    require_choice("kind", kind, get_args(KLKind))
    require_floating(xp, "logprobs", logprobs)
    require_floating(xp, "ref_logprobs", ref_logprobs)
    require_shape("ref_logprobs", ref_logprobs, logprobs.shape)
    mask = xp.ones_like(logprobs, dtype=xp.bool)
    new, to_ref = log_ratios(xp, logprobs, ref_logprobs, mask)
    to_old = xp.zeros_like(to_ref)
    if old_logprobs is not None:
        if kind != "k3-weighted":
            raise TypeError(f"old_logprobs go with kind='k3-weighted', not {kind!r}")
        require_floating(xp, "old_logprobs", old_logprobs)
        require_shape("old_logprobs", old_logprobs, logprobs.shape)
        _, to_old = log_ratios(xp, logprobs, old_logprobs, mask)
    return kl_of_log_ratios(xp, new, to_ref, to_old, kind)


def kl_of_log_ratios(
    xp: Namespace, logprobs: Array, to_ref: Array, to_old: Array, kind: KLKind
) -> Array:
    """Return the estimate from log-probabilities and log-ratios to reference and old policy.

    Its gradient is given in closed form, so that it is right beyond the clamp as well.
    """
    d = clamped(xp, stop_gradient(to_ref))
    if kind == "k1":
        return with_slope(xp, d, xp.ones_like(d), logprobs)
    if kind == "k2":
        return with_slope(xp, 0.5 * d * d, d, logprobs)
    if kind == "k1+":
        return with_slope(xp, d, d, logprobs)
    value = k3_of(xp, d)
    if kind == "k3":
        return with_slope(xp, value, -xp.expm1(-d), logprobs)
    if kind == "k3+":
        return with_slope(xp, value, d, logprobs)
    ratio = xp.exp(clamped(xp, stop_gradient(to_old)))
    return with_slope(xp, ratio * value, ratio * d, logprobs)


def k3_of(xp: Namespace, log_ratio: Array) -> Array:
    """Return exp(-d) + d - 1."""
    return xp.expm1(-log_ratio) + log_ratio


def log_ratios(xp: Namespace, logprobs: Array, other: Array, mask: Array) -> tuple[Array, Array]:
    """Return log-probabilities and their difference to constant others, 0 where masked out."""
    logprobs = widen(xp, logprobs)
    # Both are masked before the subtraction: a later `where` would leave NaN in the gradients.
    new = xp.where(mask, logprobs, 0.0)
    old = xp.where(mask, xp.astype(stop_gradient(other), logprobs.dtype), 0.0)
    return new, new - old


def clamped(xp: Namespace, log_ratio: Array) -> Array:
    """Return the log-ratio within +-20, without a gradient beyond."""
    return xp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def with_slope(xp: Namespace, value: Array, slope: Array | float, logprobs: Array) -> Array:
    """Return a constant value with a constant derivative by each log-probability."""
    finite = xp.where(xp.isfinite(logprobs), logprobs, 0.0)
    return value + slope * (finite - stop_gradient(finite))
