"""The whole objective from hidden states, with three matrix products instead of four."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from g2rpo import BatchTotals, LossOptions, LossTerms
from g2rpo._head_checks import check_label_values, check_labels, check_options

from ._backend import Choice, choose_backend
from ._chunks import chunk_capacity, fused_pass
from ._gradients import Needs
from ._inputs import is_integral, prepared_head, require_tensors
from ._packed_loss import PackedLoss
from ._softmax import choose_tile
from ._tiles import Head, operand_dtype
from .logprobs import linear_softmax

__all__ = ["fused_g2rpo_loss"]

# No valid label has this value, so no token is ignored.
_NO_IGNORED_LABEL = -1


@torch.compiler.disable
def fused_g2rpo_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    tasks: Tensor | None = None,
    /,
    *,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    recompute_logits: bool = False,
    backend: Choice = "auto",
    options: LossOptions | None = None,
    num_tasks: int | None = None,
    task_weights: Tensor | None = None,
    entropy_low: Tensor | None = None,
    entropy_high: Tensor | None = None,
    entropy_weight: Tensor | float = 0.02,
    length_advantages: Tensor | None = None,
    length_weight: float = 0.1,
    ref_logprobs: Tensor | None = None,
    beta: float = 0.0,
    importance_weights: Tensor | None = None,
    totals: BatchTotals | None = None,
    **keywords: Any,
) -> tuple[LossTerms, dict[str, Tensor]]:
    """Return the result of :func:`g2rpo.g2rpo_loss` from hidden states and the head's weight.

    The gradients by ``hidden``, ``weight`` and ``bias`` are computed together with the loss, while
    the logits of a chunk of tokens are in memory, and saved for the backward pass.

    Parameters
    ----------
    hidden : Tensor
        Hidden states from which the B responses' tokens are predicted, shape (B, T, H).
    weight : Tensor
        The head's weight, shape (V, H); a sharded one as in
        :func:`g2rpo_torch.logprobs_and_entropy`.
    labels : Tensor
        The responses' tokens, integers of shape (B, T); any values where masked out.
    old_logprobs, advantages, mask
        As in :func:`g2rpo.g2rpo_loss`. Nothing is computed for masked-out tokens.
    tasks : Tensor, optional
        Integer task labels, shape (B,); for the entropy term, or with ``num_tasks``.
    bias, low_rank, temperature, softcap : optional
        As in :func:`g2rpo_torch.logprobs_and_entropy`.
    chunk_tokens : int, optional
        Number of tokens of a chunk; by default its logits take 256 MiB on a CPU, and 1.25 GiB on a
        GPU, whose matrix products want more rows. The loss is evaluated once for each chunk, and
        once more if there are several.
    recompute_logits : bool, optional
        Compute the logits twice and keep none: four products instead of three, and the memory of
        :func:`g2rpo_torch.logprobs_and_entropy`.
    backend : {"auto", "portable", "triton"}, optional
        As in :func:`g2rpo_torch.logprobs_and_entropy`.
    options, num_tasks, task_weights : optional
        As in :func:`g2rpo.g2rpo_loss`.
    entropy_low, entropy_high : Tensor, optional
        Each task's entropy band, shape (num_tasks,), in nats; None for no entropy term.
    entropy_weight, length_advantages, length_weight, ref_logprobs, beta : optional
        As in :func:`g2rpo.g2rpo_loss`.
    importance_weights : Tensor, optional
        As in :func:`g2rpo.g2rpo_loss`.
    totals : BatchTotals, optional
        As in :func:`g2rpo.g2rpo_loss`. Its ``task_entropy`` is compared with the entropy bounds;
        the entropies at sampling are a good value.
    **keywords
        Fields of :class:`g2rpo.LossOptions`; they take precedence over ``options``.

    Returns
    -------
    terms : LossTerms
        Only ``total`` has a gradient.
    metrics : dict of str to Tensor
        Metrics of the core, without gradient.

    Raises
    ------
    TypeError
        If an argument is of a wrong type, or bounds come without tasks.
    ValueError
        If shapes or devices do not fit, a label that counts is outside 0 .. V - 1, or an option is
        out of its range.

    Notes
    -----
    *Time*: three matrix products, and a fourth if there is an entropy term without ``totals``: the
    mean entropy of a task, which is compared with its bounds, needs a separate pass. Also four, by
    :func:`g2rpo_torch.logprobs_and_entropy`, where the loss of a token depends on its whole
    response (``loss_type="gspo"``, ``aggregation="sequence"``) and a response is longer than a
    chunk. A custom loss gets its tokens as responses of one, shape (n, 1), unless it needs whole
    responses. Tokens without a gradient, as in a group without signal, are left out of two of the
    products.

    *Memory*: beyond the gradients, the logits of a chunk and two tiles. The gradient of a weight
    of half precision is summed in float32 up to the last chunk: 4 V H bytes more.
    ``recompute_logits`` needs neither the chunk nor the sum.

    *PyTorch*: ``torch.compile`` has a graph break here. With three products the backward pass can
    run once only; a second derivative raises ``NotImplementedError``.

    Examples
    --------
    >>> import torch
    >>> hidden, weight = torch.zeros(1, 2, 4), torch.zeros(3, 4, requires_grad=True)
    >>> labels, mask = torch.tensor([[2, 0]]), torch.tensor([[True, False]])
    >>> old = torch.full((1, 2), -1.0986)
    >>> terms, _ = fused_g2rpo_loss(hidden, weight, labels, old, torch.tensor([2.0]), mask)
    >>> round(terms.total.item(), 4), terms.total.requires_grad
    (-2.0, True)
    """
    hidden, weight, adapter, bias = prepared_head(hidden, weight, bias, low_rank)
    require_tensors(hidden, labels=labels, mask=mask)
    check_labels(labels, hidden, is_integral=is_integral)
    check_options(temperature, softcap)
    _check_shapes(labels, mask, chunk_tokens)
    inputs = {
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "tasks": tasks,
        "length_advantages": length_advantages,
        "ref_logprobs": ref_logprobs,
        "importance_weights": importance_weights,
    }
    rest = {
        "num_tasks": num_tasks,
        "task_weights": task_weights,
        "entropy_low": entropy_low,
        "entropy_high": entropy_high,
        "entropy_weight": entropy_weight,
        "length_weight": length_weight,
        "beta": beta,
        "totals": totals,
    }
    loss = PackedLoss(mask.bool(), inputs, replace(options or LossOptions(), **keywords), rest)
    chunks = loss.chunks(chunk_tokens or chunk_capacity(weight.shape[0], hidden.device))
    if chunks is not None and len(chunks) > 1:
        # A chunk of all tokens is checked by its own evaluation.
        loss.check()
    packed, labels = loss.packed(hidden), loss.packed(labels)
    check_label_values(labels, weight.shape[0])
    leaves = (packed, weight, adapter, bias)
    head = Head(*leaves[1:], temperature, softcap, operand_dtype(hidden, weight))
    head = head._replace(backend=choose_backend(backend, head, packed.device))
    options_of_head = (temperature, softcap, _NO_IGNORED_LABEL)
    softmax_inputs = (*leaves, labels, options_of_head, None, head.backend)
    needs = Needs(*(x is not None and x.requires_grad for x in leaves))
    if chunks is None or recompute_logits or not (any(needs) and torch.is_grad_enabled()):
        terms, metrics = loss.whole(*linear_softmax(*softmax_inputs))
        return LossTerms(terms.total, *(term.detach() for term in terms[1:])), metrics

    with torch.no_grad():
        if totals is None:
            # The sign of the entropy term's gradient follows from the mean entropies of the tasks.
            entropy = linear_softmax(*softmax_inputs)[1] if loss.has_entropy else None
            loss = loss.with_totals(entropy)
    total, logprobs, entropy, *_ = _FusedLoss.apply(*leaves, labels, head[3:], loss, chunks, needs)
    with torch.no_grad():
        terms, metrics = loss.found or loss.whole(logprobs, entropy)
    return terms._replace(total=total), metrics


def _check_shapes(labels: Tensor, mask: Tensor, chunk_tokens: int | None) -> None:
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens!r}")
    if labels.ndim != 2:
        raise ValueError(f"labels must have shape (B, T), got {tuple(labels.shape)}")
    if mask.shape != labels.shape:
        raise ValueError(f"mask must have shape {tuple(labels.shape)}, got {tuple(mask.shape)}")


class _FusedLoss(torch.autograd.Function):
    """The loss and the tokens' values; the backward pass scales the saved gradients."""

    @staticmethod
    def forward(hidden, weight, low_rank, bias, labels, options, loss, chunks, needs):  # type: ignore[no-untyped-def]
        head, tile = Head(weight, low_rank, bias, *options), choose_tile(hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            fused = fused_pass(head, hidden, labels.long(), loss, chunks, needs, tile)
        return fused.total, fused.logprobs, fused.entropy, *fused.gradients

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.needs = inputs[-1]
        ctx.save_for_backward(*output[3:], *inputs[:4])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, by_total, *_):  # type: ignore[no-untyped-def]
        gradients, leaves = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():
            gradients = _Scaled.apply(by_total, *gradients, *leaves)
        else:
            # In place: a copy would double the largest gradient. In a second backward pass autograd
            # raises, since saved tensors were modified.
            for gradient in gradients:
                gradient.mul_(by_total)
        wanted = [g if needed else None for g, needed in zip(gradients, ctx.needs, strict=True)]
        return (*wanted, *[None] * 5)


class _Scaled(torch.autograd.Function):
    """Four gradients times a scalar, with an error in place of a second derivative."""

    @staticmethod
    def forward(scale, *tensors):  # type: ignore[no-untyped-def]
        return tuple(tensor * scale for tensor in tensors[:4])

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, *_):  # type: ignore[no-untyped-def]
        raise NotImplementedError("fused_g2rpo_loss has no second derivative")
