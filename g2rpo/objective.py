"""The whole objective: policy, length, entropy and KL terms, each reported by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import is_array_api_obj

from g2rpo._aggregation import Aggregation, aggregate, as_divisor
from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_choice,
    require_floating,
    require_shape,
    widen,
)
from g2rpo._libraries import stop_gradient
from g2rpo._reported import reported
from g2rpo._totals import BatchTotals, batch_totals, check_entropies
from g2rpo._typing import Array
from g2rpo.entropy import task_sums
from g2rpo.losses import KLKind, kl_of_log_ratio, masked_log_ratio, policy_loss

__all__ = ["BatchTotals", "LossTerms", "batch_totals", "g2rpo_loss"]


class LossTerms(NamedTuple):
    """The terms of the objective: scalars, already weighted; ``total`` is their sum."""

    total: Array
    policy: Array
    length: Array
    entropy: Array
    kl: Array


def g2rpo_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    /,
    *,
    entropies: Array | None = None,
    tasks: Array | None = None,
    num_tasks: int | None = None,
    entropy_low: Array | None = None,
    entropy_high: Array | None = None,
    entropy_weight: Array | float = 0.02,
    length_advantages: Array | None = None,
    length_weight: float = 0.1,
    ref_logprobs: Array | None = None,
    beta: float = 0.0,
    kl_kind: KLKind = "k3",
    totals: BatchTotals | None = None,
    aggregation: Aggregation = "token",
    max_completion_length: int | None = None,
    **options: Any,
) -> tuple[LossTerms, dict[str, Array]]:
    r"""Return the objective of a batch, or of one slice of it, term by term.

    .. math:: L = L_{policy}(A) + w_{len} L_{policy}(A_{len})
              + \sum_t w_t \max(0, H_t - high_t, low_t - H_t) + \beta \, KL

    Parameters
    ----------
    logprobs, old_logprobs, advantages, mask
        As in :func:`g2rpo.policy_loss`.
    entropies : array, optional
        Exact token entropies, shape (B, T), in nats, differentiable; None for no entropy term.
    tasks : array, optional
        Integer task labels 0 .. num_tasks - 1, shape (B,); with ``entropies`` or ``num_tasks``.
    num_tasks : int, optional
        Number of tasks: adds the metrics of each.
    entropy_low, entropy_high : array, optional
        Each task's entropy band, shape (num_tasks,), in nats; with ``entropies``.
    entropy_weight : float or array, optional
        Weight of the entropy term, or one of each task, shape (num_tasks,).
    length_advantages : array, optional
        Advantages of the length reward, shape (B,); None for no length term.
    length_weight : float, optional
        Weight of the length term.
    ref_logprobs : array, optional
        Log-probabilities under the reference policy, shape (B, T); None for no KL term.
    beta : float, optional
        Weight of the KL term.
    kl_kind : {"k1", "k2", "k3"}, optional
        As in :func:`g2rpo.kl_penalty`.
    totals : BatchTotals, optional
        Makes this call one slice of a mini-batch: values and gradients of the slices then add up
        to those of the whole. By default this call is the whole.
    aggregation, max_completion_length
        As in :func:`g2rpo.policy_loss`; for the policy, length and KL terms.
    **options
        Further options of :func:`g2rpo.policy_loss`, for the policy and length terms.

    Returns
    -------
    terms : LossTerms
        Weighted scalars; a term that is not asked for is 0.
    metrics : dict of str to array
        Those of :func:`g2rpo.policy_loss`, and ``entropy`` and ``kl``, the token means in nats,
        where given. With ``num_tasks`` also by task, under ``tasks/`` and the name, shape
        (num_tasks,). All are of this call, but those by task are divided by the ``totals``, if
        given, so that those of slices add up (of ``tasks/ratio/max`` take the largest). Without
        gradient.

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or ``entropies`` come without tasks and bounds.
    ValueError
        If a shape is wrong or an option is out of its range.

    Notes
    -----
    The entropy band is judged on each task's mean over the whole mini-batch, so that a slice in
    which a task happens to be calm does not pull against the rest. A task without tokens adds
    nothing.

    References
    ----------
    G²RPO, arXiv:2604.08539, Eqs. 9 and 10.

    Examples
    --------
    >>> import numpy as np
    >>> logprobs = np.log(np.full((2, 3), 0.5))
    >>> terms, _ = g2rpo_loss(
    ...     logprobs, logprobs, np.asarray([1.0, -1.0]), np.ones((2, 3), dtype=bool),
    ...     entropies=np.full((2, 3), 0.9), tasks=np.asarray([0, 0]),
    ...     entropy_low=np.asarray([0.2]), entropy_high=np.asarray([0.6]),
    ... )
    >>> round(float(terms.entropy), 6), float(terms.policy)
    (0.006, 0.0)
    """
    if "denominator" in options:
        raise TypeError("g2rpo_loss takes totals in place of denominator")
    denominator = None
    if totals is not None:
        denominator = totals.tokens if aggregation == "token" else totals.sequences
    reduction: dict[str, Any] = {
        "aggregation": aggregation,
        "max_completion_length": max_completion_length,
        "denominator": denominator,
    }
    by_task: dict[str, Any] = {}
    if num_tasks is not None:
        by_task = {"tasks": tasks, "num_tasks": num_tasks, "task_tokens": _task_tokens(totals)}
    policy, metrics = policy_loss(
        logprobs, old_logprobs, advantages, mask, **reduction, **by_task, **options
    )
    xp = namespace_of(logprobs=logprobs)
    values: dict[str, Array] = {}
    length = entropy = kl = xp.zeros_like(policy)
    mask = as_mask(xp, mask, logprobs.shape)
    if length_advantages is not None:
        surrogate, _ = policy_loss(
            logprobs, old_logprobs, length_advantages, mask, **reduction, **options
        )
        length = length_weight * surrogate
    if entropies is not None:
        if tasks is None or entropy_low is None or entropy_high is None:
            raise TypeError("entropies need tasks, entropy_low and entropy_high")
        band = (entropy_low, entropy_high)
        entropy = _entropy_term(entropies, tasks, mask, band, entropy_weight, totals)
        values["entropy"] = stop_gradient(widen(xp, entropies))
    if ref_logprobs is not None:
        penalty = _penalty(logprobs, ref_logprobs, mask, kl_kind)
        kl = beta * aggregate(xp, penalty, mask, **reduction)
        values["kl"] = stop_gradient(penalty)
    metrics |= reported(xp, values, mask, **by_task)
    return LossTerms(policy + length + entropy + kl, policy, length, entropy, kl), metrics


def _task_tokens(totals: BatchTotals | None) -> Array | None:
    if totals is None:
        return None
    if totals.task_tokens is None:
        raise TypeError("num_tasks needs totals with task_tokens")
    return totals.task_tokens


def _entropy_term(
    entropies: Array,
    tasks: Array,
    mask: Array,
    band: tuple[Array, Array],
    weight: Array | float,
    totals: BatchTotals | None,
) -> Array:
    """Return the hinge of this slice.

    Outside the band the hinge is linear, so the slice's part of it is the sum of its tokens'
    distances to the bound, over the tokens of the whole batch.
    """
    xp = namespace_of(
        entropies=entropies, tasks=tasks, mask=mask, entropy_low=band[0], entropy_high=band[1]
    )
    check_entropies(xp, entropies, tasks, mask)
    require_shape("entropy_low", band[0], ("num_tasks",))
    require_shape("entropy_high", band[1], band[0].shape)
    num_tasks = band[0].shape[0]
    if totals is None:
        totals = batch_totals(mask, entropies=entropies, tasks=tasks, num_tasks=num_tasks)
    elif totals.task_tokens is None or totals.task_entropy is None:
        raise TypeError("the entropy term needs totals with task_tokens and task_entropy")
    require_shape("totals.task_tokens", totals.task_tokens, (num_tasks,))
    require_shape("totals.task_entropy", totals.task_entropy, (num_tasks,))
    sums, tokens = task_sums(xp, entropies, mask, tasks, num_tasks)
    low, high = (xp.astype(bound, sums.dtype) for bound in band)
    judged = xp.astype(stop_gradient(totals.task_entropy), sums.dtype)
    # An infinite bound is never exceeded; it must not be multiplied by a 0 either.
    above = sums - xp.where(judged > high, high, 0.0) * tokens
    below = xp.where(judged < low, low, 0.0) * tokens - sums
    excess = xp.where(judged > high, above, xp.where(judged < low, below, 0.0))
    excess = xp.where(tokens > 0, excess, 0.0) / as_divisor(xp, totals.task_tokens, sums)
    if is_array_api_obj(weight):
        require_shape("entropy_weight", weight, (), (num_tasks,))
        weight = xp.astype(weight, sums.dtype)
    return xp.sum(weight * excess)


def _penalty(logprobs: Array, ref_logprobs: Array, mask: Array, kind: KLKind) -> Array:
    """Return the distance to the reference, token by token (B, T)."""
    xp = namespace_of(logprobs=logprobs, ref_logprobs=ref_logprobs)
    require_choice("kl_kind", kind, ("k1", "k2", "k3"))
    require_floating(xp, "ref_logprobs", ref_logprobs)
    require_shape("ref_logprobs", ref_logprobs, logprobs.shape)
    log_ratio = masked_log_ratio(xp, logprobs, stop_gradient(ref_logprobs), mask)
    return kl_of_log_ratio(xp, log_ratio, kind)
