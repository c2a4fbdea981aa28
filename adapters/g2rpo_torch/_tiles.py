"""Arithmetic on tiles of logits: softmax statistics, and the gradient by the logits.

A tile is a block of logits, tokens by vocabulary entries, small enough for a cache. This module is
independent of autograd; :mod:`g2rpo_torch.logprobs` and :mod:`g2rpo_torch.fused_loss` use it.

The matrix products are PyTorch's. The elementwise part exists twice: here in PyTorch's operations,
and in :mod:`g2rpo_torch._triton` as one kernel for each direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# exp(-800) is 0 in float64. Minus infinity would give 0 * inf = NaN in p log p.
_FLOOR = -800.0
# Below every logit; the difference of two infinities would be NaN.
_LOWEST = -1e30

Backend = Literal["portable", "triton"]


class Tile(NamedTuple):
    """Size of a tile: tokens by vocabulary entries."""

    tokens: int
    entries: int


class VocabSlice(NamedTuple):
    """A range of vocabulary entries, with the weight and bias of their logits."""

    entries: slice
    weight: Tensor
    bias: Tensor | None


class Head(NamedTuple):
    """A linear layer from hidden states to logits.

    Attributes
    ----------
    weight : Tensor (V, H)
    low_rank : Tensor (V, R) or None
        Additional columns of the weight; the hidden states then have H + R columns.
    bias : Tensor (V,) or None
        Minus infinity excludes an entry.
    temperature : float
        Divisor of the logits, after the softcap.
    softcap : float or None
        c · tanh(logits / c), before the temperature.
    operands : torch.dtype
        Dtype of the operands of products.
    backend : {"portable", "triton"}
        Implementation of the elementwise part.
    """

    weight: Tensor
    low_rank: Tensor | None
    bias: Tensor | None
    temperature: float
    softcap: float | None
    operands: torch.dtype
    backend: Backend = "portable"

    @property
    def sum_dtype(self) -> torch.dtype:
        """Dtype in which products are accumulated, and of the logits."""
        return torch.float64 if self.operands == torch.float64 else torch.float32

    def vocab_slices(self, width: int) -> Iterator[VocabSlice]:
        """Yield the vocabulary in slices of ``width`` entries."""
        size = self.weight.shape[0]
        for start in range(0, size, width):
            entries = slice(start, min(start + width, size))
            bias = None if self.bias is None else self.bias[entries].to(self.sum_dtype)
            weight = self.weight[entries].to(self.operands)
            if self.low_rank is not None:
                weight = torch.cat([weight, self.low_rank[entries].to(self.operands)], dim=1)
            yield VocabSlice(entries, weight, bias)

    def logits_into(self, tile: Tensor, hidden: Tensor, vocab: VocabSlice) -> None:
        """Fill a tile with logits; for the Triton kernels with the bare products W h."""
        if self.backend == "triton":
            multiply(tile, hidden, vocab.weight.t())
            return
        # Scaling inside of the product costs no additional pass over the tile.
        scale = 1.0 / (self.softcap or self.temperature)
        if vocab.bias is None:
            multiply(tile, hidden, vocab.weight.t(), alpha=scale)
        else:
            tile.copy_(vocab.bias)
            multiply(tile, hidden, vocab.weight.t(), beta=scale, alpha=scale)
        if self.softcap is not None:
            tile.tanh_().mul_(self.softcap / self.temperature)
            if vocab.bias is not None:
                tile.masked_fill_(vocab.bias == -torch.inf, -torch.inf)

    def softcap_slope(self, tile: Tensor) -> Tensor | None:
        """Return 1 - tanh² at the logits of a tile, 0 at an excluded entry; None for no cap."""
        if self.softcap is None:
            return None
        tanh = tile * (self.temperature / self.softcap)
        return tanh.mul_(tanh).neg_().add_(1.0).clamp_(min=0.0)

    def log_softmax_into(self, out: Tensor, tile: Tensor, normalizer: Tensor) -> None:
        """Subtract each token's normalizer, with minus infinity replaced by a finite number."""
        torch.sub(tile, normalizer[:, None], out=out)
        if self.bias is not None:
            out.clamp_(min=_FLOOR)


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the operands: half precision only where sums are in float32."""
    device = hidden.device
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device.type)
    is_half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if is_half and not _accumulates_half(device) else dtype


@torch.compiler.assume_constant_result
def _accumulates_half(device: torch.device) -> bool:
    """Return whether products of half precision can be added to a float32 matrix.

    Recent versions of PyTorch can on CUDA; other devices would round the products to half.
    """
    return device.type == "cuda" and _test_accumulation(device)


@cache
def _test_accumulation(device: torch.device) -> bool:
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    total = ones.float()
    try:
        multiply(total, ones, ones, beta=1.0)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 17).all())


def multiply(out: Tensor, a: Tensor, b: Tensor, *, beta: float = 0.0, alpha: float = 1.0) -> None:
    """Set out = beta · out + alpha · a b, accumulated in the dtype of ``out``."""
    if a.dtype == out.dtype:
        out.addmm_(a, b, beta=beta, alpha=alpha)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, beta=beta, alpha=alpha, out=out)


class Softmax(NamedTuple):
    """Softmax statistics of N tokens, shape (N,) each."""

    logprobs: Tensor
    entropy: Tensor
    normalizer: Tensor


class RunningSoftmax:
    """Softmax statistics of N tokens that are updated tile by tile (online softmax).

    Parameters
    ----------
    labels : Tensor (N,), int64
        Labels.
    dtype : torch.dtype
        Dtype of the logits.
    """

    def __init__(self, labels: Tensor, dtype: torch.dtype) -> None:
        self._labels = labels
        self._highest = torch.full(labels.shape, _LOWEST, dtype=dtype, device=labels.device)
        # Sums of e and e · x with x = logit - highest and e = exp(x).
        self._total = torch.zeros_like(self._highest)
        self._weighted = torch.zeros_like(self._highest)
        self._target = torch.zeros_like(self._highest)

    def update(
        self,
        tile: Tensor,
        head: Head,
        rows: slice,
        vocab: VocabSlice,
        shifted: Tensor,
        scratch: Tensor,
    ) -> None:
        """Update the statistics of some tokens with their logits in a vocabulary slice.

        ``shifted`` and ``scratch`` are overwritten; ``shifted`` may be the tile itself.
        """
        if head.backend == "triton":
            from . import _triton

            state = (self._highest, self._total, self._weighted, self._target)
            _triton.update(tile, head, vocab, self._labels[rows], *(x[rows] for x in state))
            return
        index, inside = label_in_tile(self._labels[rows], vocab.entries.start, tile.shape[1])
        target = tile.gather(1, index[:, None])[:, 0]
        self._target[rows] = torch.where(inside, target, self._target[rows])

        before, total = self._highest[rows], self._total[rows]
        highest = torch.maximum(before, tile.amax(-1))
        head.log_softmax_into(shifted, tile, highest)
        torch.exp(shifted, out=scratch)
        # With a higher reference every earlier x changes by `shift`, and every e by exp(shift).
        shift = before - highest
        decay = shift.exp()
        weighted = decay * (self._weighted[rows] + shift * total)
        self._total[rows] = decay * total + scratch.sum(-1)
        # No dot product: it may be computed in TF32 where matrix products are.
        self._weighted[rows] = weighted + scratch.mul_(shifted).sum(-1)
        self._highest[rows] = highest

    def result(self) -> Softmax:
        """Return the statistics after the last tile."""
        # A row without a finite logit has total 0: entropy 0, as in the core.
        total = torch.where(self._total > 0, self._total, 1.0)
        log_total = total.log()
        return Softmax(
            logprobs=(self._target - self._highest) - log_total,
            entropy=log_total - self._weighted / total,
            normalizer=self._highest + log_total,
        )


class OutputGrads(NamedTuple):
    """Gradients of a loss by N log-probabilities and entropies, (N,), in the dtype of the logits.

    Attributes
    ----------
    logprobs : Tensor
        Gradient by the log-probabilities of the labels.
    entropy : Tensor or None
        Gradient by the entropies; None if the loss does not depend on them.
    """

    logprobs: Tensor
    entropy: Tensor | None

    def has_grad(self) -> Tensor:
        """Return whether a token has a gradient other than 0 (NaN included), bool (N,)."""
        nonzero = self.logprobs != 0
        return nonzero if self.entropy is None else nonzero | (self.entropy != 0)

    def take(self, rows: Tensor | slice) -> OutputGrads:
        """Return the gradients of some of the tokens."""
        return OutputGrads(
            self.logprobs[rows], None if self.entropy is None else self.entropy[rows]
        )

    def logit_gradient(
        self,
        tile: Tensor,
        head: Head,
        softmax: Softmax,
        labels: Tensor,
        vocab: VocabSlice,
        scratch: Tensor,
        *,
        exact: bool,
    ) -> Tensor:
        r"""Return the gradient by the products W h of a tile of logits.

        With gradients a by the log-probability of label y and b by the entropy H, the gradient by
        logit v is :math:`a 1[v = y] - p_v (a + b (\log p_v + H))`. The tile and ``scratch`` are
        overwritten; the result is in one of them. Unless ``exact``, it may be rounded to the dtype
        of the operands of the next products.
        """
        if head.backend == "triton":
            from . import _triton

            return _triton.logit_gradient(
                tile, head, vocab, labels, softmax, self, scratch, exact=exact
            )
        p, slope = scratch, head.softcap_slope(tile)
        by_logprob = self.logprobs / head.temperature
        head.log_softmax_into(tile, tile, softmax.normalizer)
        torch.exp(tile, out=p)
        if self.entropy is None:
            torch.mul(p, -by_logprob[:, None], out=tile)
        else:
            by_entropy = self.entropy / head.temperature
            constant = -(by_logprob + by_entropy * softmax.entropy)
            torch.addcmul(constant[:, None], tile, by_entropy[:, None], value=-1, out=tile)
            tile.mul_(p)
        index, inside = label_in_tile(labels, vocab.entries.start, tile.shape[1])
        tile.scatter_add_(1, index[:, None], torch.where(inside, by_logprob, 0.0)[:, None])
        if slope is not None:
            tile.mul_(slope)
        return tile


def label_in_tile(labels: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """Return each label's index in ``width`` entries from ``first``, and whether it is there."""
    local = labels - first
    return local.clamp(0, width - 1), (local >= 0) & (local < width)


def even_slices(size: int, width: int) -> Iterator[slice]:
    """Yield ``size`` rows in slices of about equal length, at most ``width``."""
    pieces = -(-size // width)
    for piece in range(pieces):
        yield slice(piece * size // pieces, (piece + 1) * size // pieces)
