"""The policy's surrogate loss, for [B, T] token log-probabilities.

A *mask* marks the response tokens that count. Values elsewhere may be anything, NaN and infinities
included, and affect neither value nor gradient. A response without a counted token is legal and
contributes nothing; if no token counts, the loss is 0. Half precision is computed, and the scalar
returned, in float32.
"""

from __future__ import annotations

from typing import Any

from g2rpo._aggregation import reported
from g2rpo._policy import PolicyBatch
from g2rpo._totals import BatchTotals
from g2rpo._typing import Array
from g2rpo.loss_options import LossOptions, loss_options

__all__ = ["policy_loss"]


def policy_loss(
    logprobs: Array,
    old_logprobs: Array,
    advantages: Array,
    mask: Array,
    /,
    *,
    options: LossOptions | None = None,
    importance_weights: Array | None = None,
    tasks: Array | None = None,
    num_tasks: int | None = None,
    task_weights: Array | None = None,
    totals: BatchTotals | None = None,
    **keywords: Any,
) -> tuple[Array, dict[str, Array]]:
    r"""Return the surrogate loss of a batch of responses, and metrics of its ratios.

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
    options : LossOptions, optional
        Loss type, clip range, aggregation and so on.
    importance_weights : array, optional
        Weight of each token's loss, shape (B, T), floating point, a constant: the truncated ratio
        of the old policy to the sampler of the tokens, or 0 to leave a token out. NaN and infinity
        count as 0. The denominators do not change.
    tasks : array, optional
        Integer task labels 0 .. num_tasks - 1, shape (B,); a response with another label belongs
        to no task.
    num_tasks : int, optional
        Number of tasks: adds the metrics of each. Needed for ``aggregation="task"`` and
        ``task_weights``.
    task_weights : array, optional
        Factor of each task's part of the loss, shape (num_tasks,), floating point; a constant. The
        denominators do not change, so weights of 1 change nothing. A response of no task has 1.
    totals : BatchTotals, optional
        Makes this call one slice of a mini-batch: values and gradients of the slices then add up
        to those of the whole, and so do the metrics by task. By default this call is the whole.
    **keywords
        Fields of :class:`g2rpo.LossOptions`, such as ``loss_type="gspo"`` or ``epsilon=0.1``; they
        take precedence over ``options``.

    Returns
    -------
    loss : array
        Scalar, differentiable with respect to ``logprobs``.
    metrics : dict of str to array
        Scalars without gradient: ``ratio/mean`` and ``ratio/max`` of the ratios; ``kl_old``, the k3
        estimate of KL(old || policy) in nats; and the shares of clipped tokens. With PPO's clip
        ``clip_ratio/low_mean`` and ``clip_ratio/high_mean`` are the shares without gradient below
        and above the range, ``clip_ratio/region_mean`` of both, and ``clip_ratio/dual_mean`` the
        share beyond the dual clip, if there is one. ``"cispo"`` has the first three: tokens with a
        non-zero advantage and a clipped weight. ``"sapo"`` has none. With ``num_tasks`` each of
        them also by task, as ``tasks/<name>``, shape (num_tasks,); 0 for a task without tokens.

    Raises
    ------
    TypeError
        If an argument is no array or of a wrong dtype, an option is unknown or not one of the loss
        type, or ``num_tasks`` or ``tasks`` is missing.
    ValueError
        If a shape is wrong or an option is out of its range.

    References
    ----------
    PPO, arXiv:1707.06347; dual clip, arXiv:1912.09729; GRPO, arXiv:2402.03300; DAPO,
    arXiv:2503.14476; Dr.GRPO, arXiv:2503.20783; GSPO, arXiv:2507.18071; CISPO, arXiv:2506.13585;
    SAPO, arXiv:2511.20347.

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
    resolved = loss_options(options, keywords)
    batch = PolicyBatch.of(logprobs, old_logprobs, mask, resolved, tasks, num_tasks, totals)
    constant = batch.constant_advantages("advantages", advantages)
    loss = batch.loss(constant, importance_weights, task_weights)
    return loss, reported(batch.xp, batch.token_metrics(constant), batch.reduction)
