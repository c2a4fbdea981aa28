"""The policy's ratios in one batch, and its surrogate loss and metrics for given advantages."""

from __future__ import annotations

from typing import NamedTuple

from g2rpo._aggregation import Reduction, aggregate, at_least_one
from g2rpo._checks import (
    as_mask,
    namespace_of,
    require_floating,
    require_labels,
    require_shape,
    wide_dtype,
)
from g2rpo._kl import clamped, k3_of, log_ratios, with_slope
from g2rpo._libraries import stop_gradient
from g2rpo._totals import BatchTotals
from g2rpo._typing import Array, Namespace
from g2rpo.loss_options import LossOptions
from g2rpo.loss_types import LOSSES


class PolicyBatch(NamedTuple):
    """Inputs of the surrogate losses: B responses, arrays (B, T), finite where masked out.

    ``to_old`` is the token's log-ratio to the old policy, ``log_ratio`` the one of the loss type:
    of the token or of its response. Neither is clamped.
    """

    xp: Namespace
    logprobs: Array
    to_old: Array
    log_ratio: Array
    reduction: Reduction

    @classmethod
    def of(
        cls,
        logprobs: Array,
        old_logprobs: Array,
        mask: Array,
        options: LossOptions,
        tasks: Array | None,
        num_tasks: int | None,
        totals: BatchTotals | None,
    ) -> PolicyBatch:
        """Check the arrays and compute the ratios."""
        xp = namespace_of(logprobs=logprobs, mask=mask, old_logprobs=old_logprobs)
        require_floating(xp, "logprobs", logprobs)
        require_shape("logprobs", logprobs, ("B", "T"))
        require_floating(xp, "old_logprobs", old_logprobs)
        require_shape("old_logprobs", old_logprobs, logprobs.shape)
        mask = as_mask(xp, mask, logprobs.shape)
        _check_tasks(xp, mask, options, tasks, num_tasks, totals)
        new, to_old = log_ratios(xp, logprobs, old_logprobs, mask)
        log_ratio = to_old
        if LOSSES[options.loss_type].ratio == "response":
            log_ratio = _response_log_ratio(xp, to_old, new, mask)
        return cls(xp, new, to_old, log_ratio, Reduction(mask, options, totals, tasks, num_tasks))

    def constant_advantages(self, name: str, advantages: Array) -> Array:
        """Return advantages (B, T) in the working dtype, 0 where masked out."""
        xp, like = self.xp, self.logprobs
        namespace_of(**{name: advantages}, logprobs=like)
        require_floating(xp, name, advantages)
        require_shape(name, advantages, like.shape[:1], like.shape)
        if advantages.ndim == 1:
            advantages = xp.expand_dims(advantages, axis=1)
        advantages = xp.astype(stop_gradient(advantages), wide_dtype(xp, like.dtype))
        return xp.where(self.reduction.mask, xp.broadcast_to(advantages, like.shape), 0.0)

    def loss(
        self, advantages: Array, importance_weights: Array | None, task_weights: Array | None
    ) -> Array:
        """Return the surrogate loss of constant advantages (B, T), a scalar."""
        xp, options = self.xp, self.reduction.options
        ratio = xp.exp(clamped(xp, self.log_ratio))
        losses = LOSSES[options.loss_type].surrogate(
            ratio, self.logprobs, advantages, **options.numbers
        )
        require_shape(f"what loss {options.loss_type!r} returns", losses, ratio.shape)
        if importance_weights is not None:
            losses = losses * self._constant_weights(importance_weights)
        if task_weights is not None:
            task_weights = self._constant_task_weights(task_weights)
        return aggregate(xp, losses, self.reduction, task_weights)

    def token_metrics(self, advantages: Array) -> dict[str, Array]:
        """Return the token values (B, T) of the metrics, without gradient."""
        xp, options = self.xp, self.reduction.options
        ratio = xp.exp(clamped(xp, stop_gradient(self.log_ratio)))
        # The tokens are samples of the old policy: this estimates KL(old || new).
        values = {"kl_old": k3_of(xp, -clamped(xp, stop_gradient(self.to_old)))}
        if (clipping := LOSSES[options.loss_type].clipping) is not None:
            for name, tokens in clipping(ratio, advantages, **options.numbers).items():
                values[f"clip_ratio/{name}_mean"] = xp.astype(tokens, ratio.dtype)
        return {**values, "ratio/mean": ratio, "ratio/max": ratio}

    def _constant_weights(self, weights: Array) -> Array:
        xp = self.xp
        namespace_of(importance_weights=weights, logprobs=self.logprobs)
        require_floating(xp, "importance_weights", weights)
        require_shape("importance_weights", weights, self.logprobs.shape)
        constant = xp.astype(stop_gradient(weights), self.logprobs.dtype)
        return xp.where(self.reduction.mask & xp.isfinite(constant), constant, 0.0)

    def _constant_task_weights(self, task_weights: Array) -> Array:
        xp, num_tasks = self.xp, self.reduction.num_tasks
        if num_tasks is None:
            raise TypeError("task_weights need tasks and num_tasks")
        namespace_of(task_weights=task_weights, logprobs=self.logprobs)
        require_floating(xp, "task_weights", task_weights)
        require_shape("task_weights", task_weights, (num_tasks,))
        return stop_gradient(task_weights)


def _check_tasks(
    xp: Namespace,
    mask: Array,
    options: LossOptions,
    tasks: Array | None,
    num_tasks: int | None,
    totals: BatchTotals | None,
) -> None:
    if num_tasks is None:
        if options.aggregation == "task":
            raise TypeError('aggregation="task" needs tasks and num_tasks')
        return
    if tasks is None:
        raise TypeError("num_tasks needs tasks, the label of each response")
    namespace_of(mask=mask, tasks=tasks)
    require_labels(xp, "tasks", tasks, mask.shape[0])
    if totals is None:
        return
    if totals.task_tokens is None:
        raise TypeError("num_tasks needs totals with task_tokens")
    namespace_of(mask=mask, task_tokens=totals.task_tokens)
    require_shape("totals.task_tokens", totals.task_tokens, (num_tasks,))


def _response_log_ratio(xp: Namespace, log_ratio: Array, logprobs: Array, mask: Array) -> Array:
    """Give every token the mean log-ratio of its response, with its own gradient (GSPO-token).

    The sum over a response with one advantage then has the gradient of the mean, and advantages by
    token keep theirs apart.
    """
    log_ratio = stop_gradient(log_ratio)
    tokens = at_least_one(xp, xp.sum(xp.astype(mask, log_ratio.dtype), axis=1, keepdims=True))
    mean = xp.broadcast_to(xp.sum(log_ratio, axis=1, keepdims=True) / tokens, log_ratio.shape)
    return with_slope(xp, xp.where(mask, mean, 0.0), 1.0, logprobs)
