"""Losses of the policy and of its distance to a reference, for [B, T] token log-probabilities.

A *mask* marks the response tokens that count. What stands elsewhere may be anything, NaN and
infinities included, and reaches neither value nor gradient. A response without a counted token
is legal and contributes nothing; if no token counts, a loss is 0. Half precision is computed, and
the scalar returned, in float32.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from g2rpo._aggregation import Aggregation, aggregate, at_least_one, check_aggregation
from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_choice,
    require_floating,
    require_positive,
    require_shape,
    wide_dtype,
    widen,
)
from g2rpo._libraries import stop_gradient
from g2rpo._reported import ratio_values, reported
from g2rpo._surrogates import Clip, clipped, soft_gate, weighted_likelihood
from g2rpo._typing import Array, Namespace

LossType: TypeAlias = Literal["ppo", "gspo", "cispo", "sapo"]
KLKind: TypeAlias = Literal["k1", "k2", "k3"]

_SURROGATES = {
    "ppo": clipped,
    "gspo": clipped,
    "cispo": weighted_likelihood,
    "sapo": soft_gate,
}

#: Log-ratios are clamped to +-20: beyond, the ratio says "far apart" and no more.
MAX_LOG_RATIO = 20.0


def policy_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    /,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.3,
    dual_clip: float | None = 3.0,
    loss_type: LossType = "ppo",
    aggregation: Aggregation = "token",
    max_completion_length: int | None = None,
    denominator: Array | float | None = None,
    importance_weights: Array | None = None,
    importance_cap: float = 2.0,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
    tasks: Array | None = None,
    num_tasks: int | None = None,
    task_tokens: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    r"""Return the surrogate loss of a batch of responses, and metrics of its ratios.

    With the ratio :math:`r = \pi / \pi_{old}` of a token and its advantage A, ``"ppo"`` is

    .. math:: \max(-A r, -A \, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon_{high}))

    and at most :math:`-A \cdot` ``dual_clip`` where A < 0.

    Parameters
    ----------
    logprobs : array
        Log-probabilities of the response tokens under the policy, shape (B, T), floating point.
    old_logprobs : array
        The same under the policy that sampled them, shape (B, T); a constant.
    advantages : array
        Shape (B,), or (B, T) for advantages by token; a constant.
    mask : array
        bool or 0/1, shape (B, T).
    epsilon, epsilon_high : float, optional
        How far the ratio may fall below and rise above 1.
    dual_clip : float or None, optional
        Ratio beyond which a negative advantage stops pushing, at least 1; None for no limit.
    loss_type : {"ppo", "gspo", "cispo", "sapo"}, optional
        ``"gspo"`` clips the ratio of the whole response (the geometric mean of its tokens');
        ``"cispo"`` weights the log-likelihood with the ratio capped at 1 + ``epsilon_high``;
        ``"sapo"`` replaces the clip by a sigmoid.
    aggregation : {"token", "sequence", "constant"}, optional
        Mean over tokens; mean over each response's tokens, then over responses; or sum over
        tokens, divided by responses times ``max_completion_length`` (Dr.GRPO). A response without
        tokens is not counted.
    max_completion_length : int, optional
        In tokens; with ``aggregation="constant"``, and required there.
    denominator : array or float, optional
        What the aggregated sum is divided by, in place of the number of tokens (``"token"``) or
        of responses (otherwise) of this call. With the numbers of a whole mini-batch the losses of
        its micro-batches add up to the loss of the mini-batch.
    importance_weights : array, optional
        Ratio of the old policy to the sampler that really produced the tokens, shape (B, T),
        where the two differ, as with a separate inference engine. Truncated, and a constant.
    importance_cap : float, optional
        Where the importance weights are truncated.
    temperature_positive, temperature_negative : float, optional
        Steepness of the sigmoid of ``"sapo"`` by the sign of the advantage.
    tasks, num_tasks : optional
        Integer task labels, shape (B,), and their number: adds the metrics of each task.
    task_tokens : array, optional
        What the sums of each task's metrics are divided by, shape (num_tasks,), in place of the
        tokens of this call. With those of a whole mini-batch the metrics of its micro-batches add
        up to its own.

    Returns
    -------
    loss : array
        Scalar, differentiable with respect to ``logprobs``.
    metrics : dict of str to array
        Scalars without gradient: ``clip_ratio/low_mean``, ``clip_ratio/high_mean`` and
        ``clip_ratio/region_mean``, the shares of tokens (of responses' tokens for ``"gspo"``)
        whose ratio is out of range on the side where the clip acts, or on either; ``ratio/mean``
        and ``ratio/max``; ``kl/old``, the k3 estimate of the distance to the old policy in nats.
        With ``num_tasks`` each of them also over the tokens of each task, under ``tasks/`` and its
        name, shape (num_tasks,); 0 for a task without tokens.

    Raises
    ------
    TypeError
        If an argument is no array or of a wrong dtype.
    ValueError
        If a shape is wrong or an option is out of its range.

    References
    ----------
    PPO, arXiv:1707.06347; dual clip, arXiv:1912.09729; asymmetric clip (DAPO), arXiv:2503.14476;
    Dr.GRPO, arXiv:2503.20783; GSPO, arXiv:2507.18071; CISPO, arXiv:2506.13585; SAPO,
    arXiv:2511.20347.

    Examples
    --------
    >>> import numpy as np
    >>> logprobs = np.log(np.asarray([[0.5, 0.9], [0.4, 0.1]]))
    >>> old = np.log(np.asarray([[0.5, 0.5], [0.5, 0.1]]))
    >>> mask = np.asarray([[True, True], [True, False]])
    >>> loss, metrics = policy_loss(logprobs, old, np.asarray([1.0, -1.0]), mask)
    >>> round(float(loss), 4), round(float(metrics["clip_ratio/high_mean"]), 4)
    (-0.5, 0.3333)
    """
    xp = _check_tokens(logprobs, mask, old_logprobs=old_logprobs)
    require_choice("loss_type", loss_type, tuple(_SURROGATES))
    check_aggregation(aggregation, max_completion_length)
    require_positive("epsilon", epsilon, zero=True)
    require_positive("epsilon_high", epsilon_high, zero=True)
    require_positive("temperature_positive", temperature_positive)
    require_positive("temperature_negative", temperature_negative)
    if dual_clip is not None and not dual_clip >= 1:
        raise ValueError(f"dual_clip must be None or at least 1, got {dual_clip!r}")
    clip = Clip(epsilon, epsilon_high, dual_clip, temperature_positive, temperature_negative)

    mask = as_mask(xp, mask, logprobs.shape)
    advantages = xp.where(mask, _per_token(xp, advantages, logprobs), 0.0)
    log_ratio = masked_log_ratio(xp, logprobs, stop_gradient(old_logprobs), mask)
    # The tokens are samples of the old policy, so this is its distance to the new one.
    values = {"kl/old": _k3(xp, stop_gradient(log_ratio))}
    if loss_type == "gspo":
        log_ratio = _of_response(xp, log_ratio, mask)
    losses = _SURROGATES[loss_type](xp, log_ratio, advantages, clip)
    if importance_weights is not None:
        losses = losses * _truncated(xp, importance_weights, mask, losses, importance_cap)
    loss = aggregate(xp, losses, mask, aggregation, denominator, max_completion_length)
    values |= ratio_values(xp, stop_gradient(log_ratio), advantages, clip)
    return loss, reported(xp, values, mask, tasks, num_tasks, task_tokens)


def kl_penalty(logprobs: Array, ref_logprobs: Array, /, *, kind: KLKind = "k3") -> Array:
    r"""Estimate KL(policy || reference) from the sampled tokens, token by token.

    With d = log of policy minus log of reference: ``"k1"`` is d, ``"k2"`` is d²/2 and ``"k3"`` is
    exp(-d) + d - 1, which is never negative, of low variance and, like k1, unbiased.

    Parameters
    ----------
    logprobs, ref_logprobs : array
        Log-probabilities of the sampled tokens, same shape, floating point.
    kind : {"k1", "k2", "k3"}, optional
        The estimator.

    Returns
    -------
    array
        The shape of ``logprobs``, in nats; half precision gives float32. Differences are clamped
        to +-20.

    Raises
    ------
    TypeError
        If an argument is no array or not real floating point.
    ValueError
        If shapes differ or ``kind`` is unknown.

    References
    ----------
    Schulman, "Approximating KL divergence" (2020).

    Examples
    --------
    >>> import numpy as np
    >>> kl_penalty(np.asarray([-1.0, -1.0]), np.asarray([-1.0, -2.0])).round(4)
    array([0.    , 0.3679])
    """
    xp = namespace_of(logprobs=logprobs, ref_logprobs=ref_logprobs)
    require_choice("kind", kind, ("k1", "k2", "k3"))
    require_floating(xp, "logprobs", logprobs)
    require_floating(xp, "ref_logprobs", ref_logprobs)
    require_shape("ref_logprobs", ref_logprobs, logprobs.shape)
    mask = xp.ones_like(logprobs, dtype=xp.bool)
    log_ratio = masked_log_ratio(xp, logprobs, stop_gradient(ref_logprobs), mask)
    return kl_of_log_ratio(xp, log_ratio, kind)


def kl_of_log_ratio(xp: Namespace, log_ratio: Array, kind: KLKind) -> Array:
    """Return the estimate from log policy minus log reference."""
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio * log_ratio
    return _k3(xp, -log_ratio)


def masked_log_ratio(xp: Namespace, logprobs: Array, other: Array, mask: Array) -> Array:
    """Return the clamped logprobs - other, 0 where masked out whatever stands there."""
    logprobs = widen(xp, logprobs)
    # Both are replaced before the difference: a later `where` would still let NaN into gradients.
    new = xp.where(mask, logprobs, 0.0)
    old = xp.where(mask, xp.astype(other, logprobs.dtype), 0.0)
    return xp.clip(new - old, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k3(xp: Namespace, difference: Array) -> Array:
    return xp.expm1(difference) - difference


def _check_tokens(logprobs: Array, mask: Array, **others: Array) -> Namespace:
    xp = namespace_of(logprobs=logprobs, mask=mask, **others)
    require_floating(xp, "logprobs", logprobs)
    require_shape("logprobs", logprobs, ("B", "T"))
    for name, array in others.items():
        require_floating(xp, name, array)
        require_shape(name, array, logprobs.shape)
    return xp


def _per_token(xp: Namespace, advantages: Array, logprobs: Array) -> Array:
    """Return constant advantages (B, T) in the working dtype."""
    namespace_of(advantages=advantages, logprobs=logprobs)
    require_floating(xp, "advantages", advantages)
    require_shape("advantages", advantages, logprobs.shape[:1], logprobs.shape)
    if advantages.ndim == 1:
        advantages = xp.expand_dims(advantages, axis=1)
    advantages = xp.astype(stop_gradient(advantages), wide_dtype(xp, logprobs.dtype))
    return xp.broadcast_to(advantages, logprobs.shape)


def _of_response(xp: Namespace, log_ratio: Array, mask: Array) -> Array:
    """Give every token the mean log-ratio of its response."""
    tokens = at_least_one(xp, xp.sum(xp.astype(mask, log_ratio.dtype), axis=1, keepdims=True))
    mean = xp.sum(log_ratio, axis=1, keepdims=True) / tokens
    return xp.broadcast_to(mean, log_ratio.shape)


def _truncated(xp: Namespace, weights: Array, mask: Array, like: Array, cap: float) -> Array:
    namespace_of(importance_weights=weights, logprobs=like)
    require_floating(xp, "importance_weights", weights)
    require_shape("importance_weights", weights, like.shape)
    require_positive("importance_cap", cap)
    constant = xp.astype(stop_gradient(weights), like.dtype)
    return xp.clip(xp.where(mask, constant, 1.0), None, cap)
