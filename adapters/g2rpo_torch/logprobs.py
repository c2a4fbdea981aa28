"""Log-probabilities and exact entropies of a language model's head, without its logits in memory.

The logits of N tokens are an (N, V) tensor: 2.5 GB in float32 for 4,096 tokens and a vocabulary of
151,936. Here only one tile of them is in memory, and the backward pass computes them again.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from g2rpo._head_checks import check_label_values, check_labels, check_options

from ._backend import Choice, choose_backend
from ._gradients import Needs
from ._inputs import is_integral, prepared_head, require_tensors
from ._softmax import choose_tile, scatter_rows, selected_rows, softmax_backward, softmax_forward
from ._tiles import Backend, Head, OutputGrads, Softmax, Tile, operand_dtype

__all__ = ["logprobs_and_entropy"]


def logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    /,
    *,
    bias: Tensor | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    tile: tuple[int, int] | None = None,
    backend: Choice = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Return each label's log-probability and the exact entropy, differentiable both.

    With logits :math:`z = c \tanh((W h + b) / c) / T`, or :math:`z = (W h + b) / T` without a
    softcap c, these are :math:`\log p_y` and :math:`-\sum_v p_v \log p_v` of p = softmax(z).

    Parameters
    ----------
    hidden : Tensor
        Last hidden states, floating point, shape (..., H), with any strides.
    weight : Tensor
        The head's weight, floating point, shape (V, H). A sharded one (DTensor) is gathered, and
        its gradient is the mean over the ranks, as that of other weights under FSDP2.
    labels : Tensor
        Integers, shape (...). Nothing is computed for tokens labelled ``ignore_index``.
    bias : Tensor, optional
        Shape (V,). Minus infinity excludes an entry, also with a softcap.
    low_rank : tuple of Tensor, optional
        x of shape (..., R) and U of shape (V, R): the product U x is added to W h (LoRA), so that a
        frozen weight needs no gradient; see :func:`g2rpo_torch.linear_head`.
    temperature : float, optional
        T, positive.
    softcap : float, optional
        c, positive; None for no cap.
    ignore_index : int, optional
        Label of tokens that do not count: their log-probability, entropy and gradients are 0 for
        any hidden states.
    tile : tuple of int, optional
        Tokens and vocabulary entries of the tiles; by default depending on the device. It changes
        time and memory, and results only by rounding.
    backend : {"auto", "portable", "triton"}, optional
        Implementation of the tiles: PyTorch's operations, or Triton kernels, which need a CUDA
        device and results in float32. "auto" is Triton on CUDA devices of compute capability 8.0 or
        more, and portable on other devices, for results in float64, without Triton installed, and
        inside ``torch.compile``.

    Returns
    -------
    logprobs, entropy : Tensor
        In nats, shape (...), float32; float64 if ``hidden`` or ``weight`` is.

    Raises
    ------
    TypeError
        If an argument is no tensor, or of a wrong dtype.
    ValueError
        If shapes or devices do not fit, an option is out of its range, a label other than
        ``ignore_index`` is outside 0 .. V - 1, or the backend is not available.

    Notes
    -----
    *Memory*: beyond the results and the gradients, two or three tiles, hidden states and their
    gradient in float32 if they are of half precision, and a few numbers per token. A gradient that
    is not required, such as that of a frozen head, is neither computed nor allocated.

    *Time*: one matrix product forward; backward one to compute the logits again, and one for each
    of the gradients of ``hidden`` and ``weight``. Tokens with incoming gradients of 0 are left out
    of the backward pass.

    *Precision*: sums are float32 (float64). On CUDA the operands of products keep half precision,
    or have that of autocast; on other devices they are float32, also under autocast.

    *PyTorch*: works under autocast, gradient checkpointing, ``torch.compile(fullgraph=True)``, and
    with ``torch.func.grad`` and ``vjp``; not with ``vmap`` or forward-mode differentiation, nor a
    transform of ``torch.func`` inside ``torch.compile``. A second derivative raises
    ``NotImplementedError``. On CUDA a call waits for the device, to check the labels.

    Examples
    --------
    >>> import torch
    >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> weight = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    >>> logprobs, entropy = logprobs_and_entropy(hidden, weight, torch.tensor([2, -100]))
    >>> logprobs, entropy  # three equal logits; a token that does not count
    (tensor([-1.0986,  0.0000]), tensor([1.0986, 0.0000]))
    """
    hidden, weight, adapter, bias = prepared_head(hidden, weight, bias, low_rank)
    require_tensors(hidden, labels=labels)
    check_labels(labels, hidden, is_integral=is_integral)
    check_options(temperature, softcap, tile)
    logprobs, entropy = linear_softmax(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        adapter,
        bias,
        labels.reshape(-1),
        (temperature, softcap, ignore_index),
        tile,
        backend,
    )
    return logprobs.reshape(labels.shape), entropy.reshape(labels.shape)


def linear_softmax(
    hidden: Tensor,
    weight: Tensor,
    low_rank: Tensor | None,
    bias: Tensor | None,
    labels: Tensor,
    options: tuple[float, float | None, int],
    tile: tuple[int, int] | None = None,
    backend: Choice = "auto",
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies (N,) of checked tokens, hidden (N, H), labels (N,).

    ``options`` are temperature, softcap and the label to ignore.
    """
    temperature, softcap, ignore_index = options
    operands = operand_dtype(hidden, weight)
    head = Head(weight, low_rank, bias, temperature, softcap, operands)
    logprobs, entropy, _ = _LinearSoftmax.apply(
        hidden,
        weight,
        low_rank,
        bias,
        labels,
        float(temperature),
        None if softcap is None else float(softcap),
        ignore_index,
        operands,
        *(tile or choose_tile(hidden.device)),
        choose_backend(backend, head, hidden.device),
    )
    return logprobs, entropy


# Compilers do not trace into a custom operator: neither the loops nor the check of the labels.
@torch.library.custom_op("g2rpo_torch::linear_softmax", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    low_rank: Tensor | None,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    operands: torch.dtype,
    tokens: int,
    entries: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(weight, low_rank, bias, temperature, softcap, operands, cast(Backend, backend))
    size, counted = labels.shape[0], selected_rows(labels != ignore_index)
    if counted is not None:
        hidden, labels = hidden[counted], labels[counted]
    check_label_values(labels, weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        softmax = softmax_forward(head, hidden, labels, Tile(tokens, entries))
    if counted is not None:
        softmax = Softmax(*(scatter_rows(x, counted, size) for x in softmax))
    return softmax.logprobs, softmax.entropy, softmax.normalizer


@_forward.register_fake
def _forward_shapes(hidden, weight, low_rank, bias, labels, *options):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if torch.float64 in options else torch.float32
    return tuple(hidden.new_empty(labels.shape, dtype=dtype) for _ in range(3))


@torch.library.custom_op("g2rpo_torch::linear_softmax_backward", mutates_args=())
def _backward(
    hidden: Tensor,
    weight: Tensor,
    low_rank: Tensor | None,
    bias: Tensor | None,
    labels: Tensor,
    entropy: Tensor,
    normalizer: Tensor,
    by_logprobs: Tensor | None,
    by_entropy: Tensor | None,
    needs: list[bool],
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    operands: torch.dtype,
    tokens: int,
    entries: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    head = Head(weight, low_rank, bias, temperature, softcap, operands, cast(Backend, backend))
    counts = labels != ignore_index
    grads = OutputGrads(
        logprobs=torch.zeros_like(entropy)
        if by_logprobs is None
        else torch.where(counts, by_logprobs, 0.0),
        entropy=None if by_entropy is None else torch.where(counts, by_entropy, 0.0),
    )
    softmax = Softmax(normalizer, entropy, normalizer)
    with torch.autocast(hidden.device.type, enabled=False):
        gradients = softmax_backward(
            head, hidden, labels, softmax, grads, Needs(*needs), Tile(tokens, entries)
        )
    return gradients.hidden, gradients.weight, gradients.low_rank, gradients.bias


@_backward.register_fake
def _backward_shapes(hidden, weight, low_rank, bias, *rest):  # type: ignore[no-untyped-def]
    needs = rest[5]
    return tuple(
        torch.empty_like(tensor) if needed else hidden.new_empty(0)
        for tensor, needed in zip((hidden, weight, low_rank, bias), needs, strict=True)
    )


class _LinearSoftmax(torch.autograd.Function):
    """Log-probabilities, entropies, and the normalizers for the backward pass."""

    @staticmethod
    def forward(hidden, weight, low_rank, bias, labels, *options):  # type: ignore[no-untyped-def]
        return _forward(hidden, weight, low_rank, bias, labels, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        tensors, options = inputs[:5], inputs[5:]
        _, entropy, normalizer = output
        ctx.save_for_backward(*tensors, entropy, normalizer)
        ctx.options = options
        ctx.mark_non_differentiable(normalizer)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, by_logprobs, by_entropy, _):  # type: ignore[no-untyped-def]
        needs = list(ctx.needs_input_grad[:4])
        gradients = _LinearSoftmaxBackward.apply(
            *ctx.saved_tensors, by_logprobs, by_entropy, needs, ctx.options
        )
        wanted = [g if needed else None for g, needed in zip(gradients, needs, strict=True)]
        return (*wanted, *[None] * 8)


class _LinearSoftmaxBackward(torch.autograd.Function):
    """The backward pass, with an error in place of a second derivative."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        hidden,
        weight,
        low_rank,
        bias,
        labels,
        entropy,
        normalizer,
        by_logprobs,
        by_entropy,
        needs,
        options,
    ):
        tensors = (hidden, weight, low_rank, bias, labels, entropy, normalizer)
        return _backward(*tensors, by_logprobs, by_entropy, needs, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, *_):  # type: ignore[no-untyped-def]
        raise NotImplementedError("logprobs_and_entropy has no second derivative")
