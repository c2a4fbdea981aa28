"""Corrections of off-policy batches: importance weights of another sampler, masks of old responses.

A batch is off-policy for two reasons. An inference engine computes in another precision than the
policy, so its tokens come from another distribution (*sampler mismatch*); and where a batch is used
for several updates, the policy changes after sampling. A *mask* marks the response tokens that
count; values elsewhere may be anything, NaN included. Results are constants to differentiation.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from g2rpo._aggregation import at_least_one, masked_max, masked_mean
from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_choice,
    require_floating,
    require_positive,
    require_shape,
    widen,
)
from g2rpo._kl import clamped
from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array, Namespace

RatioLevel: TypeAlias = Literal["token", "sequence", "geometric"]
RatioMode: TypeAlias = Literal["truncate", "mask", "reject"]


def sampler_weights(
    old_logprobs: Array,
    sampler_logprobs: Array,
    mask: Array,
    /,
    *,
    level: RatioLevel = "sequence",
    mode: RatioMode = "mask",
    low: float | None = None,
    high: float | None = 3.0,
) -> tuple[Array, dict[str, Array]]:
    r"""Return importance weights of tokens from another sampler, and metrics of the mismatch.

    With :math:`d_t = \log \pi_{old} - \log \pi_{sampler}` of a response's tokens, the ratio is

    .. math:: \rho_t = e^{d_t}, \qquad \rho = e^{\sum_t d_t}, \qquad
              \bar\rho = e^{\frac{1}{T} \sum_t d_t}

    at the levels ``"token"``, ``"sequence"`` and ``"geometric"``.

    Parameters
    ----------
    old_logprobs : array
        Log-probabilities of the response tokens under the policy that the ratio of the loss
        refers to, shape (B, T), floating point.
    sampler_logprobs : array
        The same under the distribution that the tokens were drawn from, shape (B, T).
    mask : array
        bool or 0/1, shape (B, T).
    level : {"token", "sequence", "geometric"}, optional
        One ratio for each token, or one for each response: the product over its tokens, or their
        geometric mean.
    mode : {"truncate", "mask", "reject"}, optional
        The weight: ``"truncate"``: the ratio, clipped to the bounds. ``"mask"``: the ratio, and 0
        outside of the bounds. ``"reject"``: 1, and 0 outside.
    low, high : float or None, optional
        Bounds of the ratio, inclusive; None for none.

    Returns
    -------
    weights : array
        The ``importance_weights`` of :func:`g2rpo.policy_loss`, shape (B, T), 0 where masked out;
        the dtype of ``old_logprobs``, but float32 for half precision.
    metrics : dict of str to array
        Scalars. Over tokens at the level ``"token"``, else over responses with tokens:
        ``sampler/ratio/mean``, ``sampler/ratio/min`` and ``sampler/ratio/max`` of the ratio
        before clipping, ``sampler/frac_low`` and ``sampler/frac_high``, the shares outside of the
        bounds. Over tokens: ``sampler/frac_masked``, the share with weight 0, and
        ``sampler/kl``, the k3 estimate of KL(sampler || policy) in nats. All are 0 without tokens.

    Raises
    ------
    TypeError
        If an argument is no array or of a wrong dtype.
    ValueError
        If a shape is wrong, an option is unknown, or the bounds are not positive and ascending.

    Notes
    -----
    The defaults are those of TRL with vLLM: ``vllm_importance_sampling_mode`` is level and mode
    (``"sequence_mask"``), ``vllm_importance_sampling_clip_min`` and ``…_clip_max`` are the bounds.
    In verl ``rollout_is`` is the level with ``mode="truncate"``, and ``rollout_rs="token_k1"``,
    ``"seq_sum_k1"`` and ``"seq_mean_k1"`` are the three levels with ``mode="reject"``; multiply the
    weights of two calls to combine them, as verl does. In verl rejected tokens also leave the
    denominator of the loss; here and in TRL they stay in it.

    The product over T tokens is unbiased, but its variance grows with T, so long responses are the
    first to be masked. Log-ratios are clamped to +-20. Where the ratio is NaN the weight is 0.

    References
    ----------
    Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025);
    Liu et al., "When speed kills stability" (2025).

    Examples
    --------
    >>> import numpy as np
    >>> old = np.log(np.asarray([[0.5, 0.4], [0.9, 0.8]]))
    >>> sampler = np.log(np.asarray([[0.5, 0.5], [0.3, 0.6]]))
    >>> weights, metrics = sampler_weights(old, sampler, np.ones((2, 2), dtype=bool))
    >>> weights.round(4)
    array([[0.8, 0.8],
           [0. , 0. ]])
    >>> float(metrics["sampler/ratio/max"].round(4)), float(metrics["sampler/frac_high"])
    (4.0, 0.5)
    """
    xp = namespace_of(old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    require_choice("level", level, ("token", "sequence", "geometric"))
    require_choice("mode", mode, ("truncate", "mask", "reject"))
    _check_bounds(low, high)
    mask, log_ratio = _log_ratio(xp, mask, old_logprobs=old_logprobs, sampler=sampler_logprobs)
    bounded = clamped(xp, log_ratio)
    kl = masked_mean(xp, xp.expm1(bounded) - bounded, mask & ~xp.isnan(log_ratio))
    units = mask
    if level != "token":
        log_ratio = _of_response(xp, log_ratio, mask, mean=level == "geometric")
        units = xp.any(mask, axis=1, keepdims=True)
    ratio = xp.exp(clamped(xp, log_ratio))
    nothing = xp.zeros_like(units)
    below = nothing if low is None else ratio < low
    above = nothing if high is None else ratio > high
    unknown = xp.isnan(log_ratio)
    if mode == "truncate":
        weights, dropped = xp.clip(ratio, low, high), unknown
    else:
        weights = xp.ones_like(ratio) if mode == "reject" else ratio
        dropped = unknown | below | above
    weights = xp.where(dropped, 0.0, weights)
    weights = xp.where(mask, xp.broadcast_to(weights, mask.shape), 0.0)
    known = units & ~unknown
    shares = {"low": below & units, "high": above & units}
    metrics = {
        "sampler/ratio/mean": masked_mean(xp, ratio, known),
        "sampler/ratio/min": _masked_min(xp, ratio, known),
        "sampler/ratio/max": masked_max(xp, ratio, known),
        **{
            f"sampler/frac_{side}": masked_mean(xp, xp.astype(outside, ratio.dtype), units)
            for side, outside in shares.items()
        },
        "sampler/frac_masked": masked_mean(xp, xp.astype(weights == 0, ratio.dtype), mask),
        "sampler/kl": kl,
    }
    return weights, metrics


def off_policy_mask(
    logprobs: Array,
    sampler_logprobs: Array,
    advantages: Array,
    mask: Array,
    /,
    *,
    threshold: float,
) -> Array:
    r"""Return the mask without responses of negative advantage that became unlikely.

    The tokens of a response with A < 0 are masked out where

    .. math:: \frac{1}{T} \sum_t \log \pi_{sampler} - \log \pi > threshold

    Training is unstable if the probability of an already unlikely response is reduced further; a
    response with A >= 0 is never masked out.

    Parameters
    ----------
    logprobs : array
        Log-probabilities of the response tokens under the current policy, shape (B, T), floating
        point.
    sampler_logprobs : array
        The same under the distribution that the tokens were drawn from, shape (B, T): those of the
        inference engine, or of the old policy where that is the sampler.
    advantages : array
        Shape (B,), or (B, T) for advantages by token.
    mask : array
        bool or 0/1, shape (B, T).
    threshold : float
        Largest mean log-ratio of a response that is kept, in nats, positive.

    Returns
    -------
    array
        bool, shape (B, T).

    Raises
    ------
    TypeError
        If an argument is no array or of a wrong dtype.
    ValueError
        If a shape is wrong or the threshold is not positive.

    Notes
    -----
    Multiply the ``importance_weights`` of :func:`g2rpo.policy_loss` by it, so that the tokens
    stay in the denominator and in the other terms: this is TRL's ``off_policy_mask_threshold``.
    A mean log-ratio of NaN counts as too large.

    References
    ----------
    DeepSeek-V3.2, arXiv:2512.02556, Eq. 9.

    Examples
    --------
    >>> import numpy as np
    >>> now, before = np.full((3, 2), -3.0), np.asarray([[-1.0, -1.0], [-1.0, -1.0], [-2.9, -3.0]])
    >>> off_policy_mask(now, before, np.asarray([-1.0, 1.0, -1.0]), now < 0, threshold=0.5)
    array([[False, False],
           [ True,  True],
           [ True,  True]])
    """
    xp = namespace_of(
        logprobs=logprobs, sampler_logprobs=sampler_logprobs, advantages=advantages, mask=mask
    )
    require_positive("threshold", threshold)
    require_floating(xp, "advantages", advantages)
    mask, log_ratio = _log_ratio(xp, mask, logprobs=logprobs, sampler=sampler_logprobs)
    require_shape("advantages", advantages, mask.shape[:1], mask.shape)
    if advantages.ndim == 1:
        advantages = xp.expand_dims(advantages, axis=1)
    is_near = _of_response(xp, -log_ratio, mask, mean=True) <= threshold
    return mask & (is_near | (advantages >= 0))


def _log_ratio(
    xp: Namespace, mask: Array, sampler: Array, **logprobs: Array
) -> tuple[Array, Array]:
    """Return the mask, and the log-ratio of the policy to the sampler, 0 where masked out."""
    ((name, new),) = logprobs.items()
    require_floating(xp, name, new)
    require_shape(name, new, ("B", "T"))
    require_floating(xp, "sampler_logprobs", sampler)
    require_shape("sampler_logprobs", sampler, new.shape)
    mask = as_mask(xp, mask, new.shape)
    new = widen(xp, stop_gradient(new))
    return mask, xp.where(mask, new - xp.astype(stop_gradient(sampler), new.dtype), 0.0)


def _of_response(xp: Namespace, log_ratio: Array, mask: Array, *, mean: bool) -> Array:
    """Return the sum or the mean over each response's tokens, (B, 1)."""
    total = xp.sum(log_ratio, axis=1, keepdims=True)
    if not mean:
        return total
    tokens = xp.sum(xp.astype(mask, log_ratio.dtype), axis=1, keepdims=True)
    return total / at_least_one(xp, tokens)


def _masked_min(xp: Namespace, ratio: Array, mask: Array) -> Array:
    """Return the smallest of finite ratios that the mask marks; 0 if there are none."""
    marked = xp.reshape(xp.where(mask, ratio, xp.inf), (-1,))
    infinity = xp.full_like(xp.sum(marked, keepdims=True), xp.inf)
    smallest = xp.min(xp.concat([infinity, marked]))
    return xp.where(xp.isinf(smallest), 0.0, smallest)


def _check_bounds(low: float | None, high: float | None) -> None:
    for name, bound in (("low", low), ("high", high)):
        if bound is not None:
            require_positive(name, bound)
    if low is not None and high is not None and low >= high:
        raise ValueError(f"low must be below high, got {low!r} and {high!r}")
