"""The whole objective: the sum of the policy, length, entropy and KL terms."""

from __future__ import annotations

from typing import Any, NamedTuple

from array_api_compat import is_array_api_obj

from g2rpo._aggregation import aggregate, as_divisor, reported
from g2rpo._checks import namespace_of, require_floating, require_shape, require_weights, widen
from g2rpo._entropy_bounds import beyond
from g2rpo._kl import kl_of_log_ratios, log_ratios
from g2rpo._libraries import stop_gradient
from g2rpo._policy import PolicyBatch
from g2rpo._totals import BatchTotals, batch_totals, check_entropies
from g2rpo._typing import Array
from g2rpo.entropy import task_sums
from g2rpo.loss_options import LossOptions, loss_options

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
    options: LossOptions | None = None,
    entropies: Array | None = None,
    tasks: Array | None = None,
    num_tasks: int | None = None,
    task_weights: Array | None = None,
    entropy_low: Array | None = None,
    entropy_high: Array | None = None,
    entropy_weight: Array | float = 0.02,
    length_advantages: Array | None = None,
    length_weight: float = 0.1,
    ref_logprobs: Array | None = None,
    beta: float = 0.0,
    importance_weights: Array | None = None,
    totals: BatchTotals | None = None,
    **keywords: Any,
) -> tuple[LossTerms, dict[str, Array]]:
    r"""Return the terms of the objective of a batch, or of one slice of it.

    .. math:: L = L_{policy}(A) + w_{len} L_{policy}(A_{len})
              + \sum_t w_t \max(0, H_t - high_t, low_t - H_t) + \beta \, KL

    Parameters
    ----------
    logprobs, old_logprobs, advantages, mask
        As in :func:`g2rpo.policy_loss`.
    options : LossOptions, optional
        Loss type, clip range, aggregation and so on; for the policy and length terms, the
        aggregation also for the KL term.
    entropies : array, optional
        Exact token entropies, shape (B, T), in nats, differentiable; None for no entropy term.
    tasks : array, optional
        Integer task labels 0 .. num_tasks - 1, shape (B,); with ``entropies`` or ``num_tasks``.
    num_tasks : int, optional
        Number of tasks: adds the metrics of each. Needed for ``aggregation="task"`` and
        ``task_weights``.
    task_weights : array, optional
        Factor of each task's part of the policy and length terms, shape (num_tasks,), as in
        :func:`g2rpo.policy_loss`.
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
    importance_weights : array, optional
        As in :func:`g2rpo.policy_loss`; for the policy and length terms.
    totals : BatchTotals, optional
        Makes this call one slice of a mini-batch: values and gradients of the slices then add up
        to those of the whole. By default this call is the whole.
    **keywords
        Fields of :class:`g2rpo.LossOptions`; they take precedence over ``options``.

    Returns
    -------
    terms : LossTerms
        Weighted scalars; a term without its inputs is 0.
    metrics : dict of str to array
        Those of :func:`g2rpo.policy_loss`, and token means in nats: ``entropy``, and ``kl``, the
        KL divergence to the reference by the estimate ``"k3-weighted"``, for any ``kl_kind``. With
        ``num_tasks`` also by task, under ``tasks/`` and the name, shape (num_tasks,). All are of
        this call, but those by task are divided by the ``totals``, if given, so that those of
        slices add up (of ``tasks/ratio/max`` take the largest). Without gradient.

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or ``entropies`` come without tasks and bounds.
    ValueError
        If a shape is wrong, an option is out of its range, or a weight that is a number is negative
        or not finite.

    Notes
    -----
    Whether a task is outside of its entropy band is decided by its mean over the whole mini-batch,
    not over a slice, so that the gradients of all slices have the same sign. A task without tokens
    adds nothing.

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
    require_weights(entropy_weight=entropy_weight, length_weight=length_weight, beta=beta)
    resolved = loss_options(options, keywords)
    batch = PolicyBatch.of(logprobs, old_logprobs, mask, resolved, tasks, num_tasks, totals)
    xp, mask = batch.xp, batch.reduction.mask
    constant = batch.constant_advantages("advantages", advantages)
    values = batch.token_metrics(constant)
    policy = batch.loss(constant, importance_weights, task_weights)
    length = entropy = kl = xp.zeros_like(policy)
    if length_advantages is not None:
        constant = batch.constant_advantages("length_advantages", length_advantages)
        length = length_weight * batch.loss(constant, importance_weights, task_weights)
    if entropies is not None:
        if tasks is None or entropy_low is None or entropy_high is None:
            raise TypeError("entropies need tasks, entropy_low and entropy_high")
        band = (entropy_low, entropy_high)
        entropy = _entropy_term(entropies, tasks, mask, band, entropy_weight, totals)
        values["entropy"] = stop_gradient(widen(xp, entropies))
    if ref_logprobs is not None:
        penalty, values["kl"] = _penalty(batch, ref_logprobs)
        kl = beta * aggregate(xp, penalty, batch.reduction)
    terms = LossTerms(policy + length + entropy + kl, policy, length, entropy, kl)
    return terms, reported(xp, values, batch.reduction)


def _entropy_term(
    entropies: Array,
    tasks: Array,
    mask: Array,
    band: tuple[Array, Array],
    weight: Array | float,
    totals: BatchTotals | None,
) -> Array:
    """Return the weighted entropy penalty of this slice.

    Outside the band the penalty is linear, so the slice's share is the sum of its tokens' distances
    to the bound, over the tokens of the whole batch.
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
    mean = xp.astype(stop_gradient(totals.task_entropy), sums.dtype)
    excess = beyond(xp, sums, tokens, low, high, mean > high)
    excess = xp.where((mean > high) | (mean < low), excess, 0.0)
    excess = xp.where(tokens > 0, excess, 0.0) / as_divisor(xp, totals.task_tokens, sums)
    if is_array_api_obj(weight):
        require_shape("entropy_weight", weight, (), (num_tasks,))
        weight = xp.astype(weight, sums.dtype)
    return xp.sum(weight * excess)


def _penalty(batch: PolicyBatch, ref_logprobs: Array) -> tuple[Array, Array]:
    """Return the KL penalty by ``kl_kind``, and the estimate for the metrics, both (B, T)."""
    xp, mask = batch.xp, batch.reduction.mask
    namespace_of(logprobs=batch.logprobs, ref_logprobs=ref_logprobs)
    require_floating(xp, "ref_logprobs", ref_logprobs)
    require_shape("ref_logprobs", ref_logprobs, batch.logprobs.shape)
    _, to_ref = log_ratios(xp, batch.logprobs, ref_logprobs, mask)
    distances = (xp, batch.logprobs, to_ref, batch.to_old)
    penalty = kl_of_log_ratios(*distances, batch.reduction.options.kl_kind)
    return penalty, stop_gradient(kl_of_log_ratios(*distances, "k3-weighted"))
