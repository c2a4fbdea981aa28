"""Arithmetic on tiles of logits: what a softmax over them needs, and its gradient.

A tile is a block of logits, tokens by vocabulary entries, small enough to stay in a cache. Nothing
here knows of autograd; :mod:`g2rpo_torch.logprobs` and :mod:`g2rpo_torch.fused_loss` do.

The products that make a tile are PyTorch's. What happens to it is written twice: here in PyTorch's
operations, and in :mod:`g2rpo_torch._triton` as one kernel for each direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Where exp is 0 in float64, too. Minus infinity itself would give 0 * inf = NaN in p log p.
_FLOOR = -800.0
# Below every logit; with minus infinity the difference of two of them would be NaN.
_LOWEST = -1e30

Backend = Literal["portable", "triton"]


class Tile(NamedTuple):
    """Size of a tile: tokens by vocabulary entries."""

    tokens: int
    entries: int


class Columns(NamedTuple):
    """A run of vocabulary entries, with the weight and bias to compute their logits."""

    entries: slice
    weight: Tensor
    bias: Tensor | None


class Head(NamedTuple):
    """What turns hidden states into logits.

    Attributes
    ----------
    weight : Tensor (V, H)
    low_rank : Tensor (V, R) or None
        More columns of the weight; the hidden states have H + R of them then.
    bias : Tensor (V,) or None
        Minus infinity excludes an entry.
    temperature : float
        Divides the logits, last of all.
    softcap : float or None
        c · tanh(logits / c), before the temperature.
    operands : torch.dtype
        What products take.
    backend : {"portable", "triton"}
        What works on the tiles.
    """

    weight: Tensor
    low_rank: Tensor | None
    bias: Tensor | None
    temperature: float
    softcap: float | None
    operands: torch.dtype
    backend: Backend = "portable"

    @property
    def dtype(self) -> torch.dtype:
        """What products are accumulated in."""
        return torch.float64 if self.operands == torch.float64 else torch.float32

    def columns(self, width: int) -> Iterator[Columns]:
        """Walk through the vocabulary, ``width`` entries at a time."""
        size = self.weight.shape[0]
        for start in range(0, size, width):
            entries = slice(start, min(start + width, size))
            bias = None if self.bias is None else self.bias[entries].to(self.dtype)
            weight = self.weight[entries].to(self.operands)
            if self.low_rank is not None:
                weight = torch.cat([weight, self.low_rank[entries].to(self.operands)], dim=1)
            yield Columns(entries, weight, bias)

    def logits_into(self, tile: Tensor, hidden: Tensor, columns: Columns) -> None:
        """Fill a tile with the logits of some tokens, or with what the kernels make them from."""
        if self.backend == "triton":
            multiply(tile, hidden, columns.weight.t())
            return
        # The scale costs nothing inside of the product.
        scale = 1.0 / (self.softcap or self.temperature)
        if columns.bias is None:
            multiply(tile, hidden, columns.weight.t(), alpha=scale)
        else:
            tile.copy_(columns.bias)
            multiply(tile, hidden, columns.weight.t(), beta=scale, alpha=scale)
        if self.softcap is not None:
            tile.tanh_().mul_(self.softcap / self.temperature)
            if columns.bias is not None:
                tile.masked_fill_(columns.bias == -torch.inf, -torch.inf)

    def softcap_slope(self, tile: Tensor) -> Tensor | None:
        """Return 1 - tanh² at the logits of a tile, 0 at an excluded entry; None for no cap."""
        if self.softcap is None:
            return None
        tanh = tile * (self.temperature / self.softcap)
        return tanh.mul_(tanh).neg_().add_(1.0).clamp_(min=0.0)

    def log_softmax_into(self, out: Tensor, tile: Tensor, normalizer: Tensor) -> None:
        """Subtract a number of each token, without leaving an infinity behind."""
        torch.sub(tile, normalizer[:, None], out=out)
        if self.bias is not None:
            out.clamp_(min=_FLOOR)


def operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return what products take: half precision only where they are accumulated in float32."""
    device = hidden.device
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device.type)
    is_half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if is_half and not _accumulates_half(device) else dtype


@torch.compiler.assume_constant_result
def _accumulates_half(device: torch.device) -> bool:
    """Tell whether products of half precision can be added to a float32 matrix.

    CUDA can, from some version of PyTorch on; other devices would round the products to half.
    """
    return device.type == "cuda" and _tries_accumulating(device)


@cache
def _tries_accumulating(device: torch.device) -> bool:
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
    """What N tokens' softmax comes down to; shape (N,) each."""

    logprobs: Tensor
    entropy: Tensor
    normalizer: Tensor


class RunningSoftmax:
    """Log-probability and entropy of N tokens while their logits pass by, tile by tile.

    Parameters
    ----------
    labels : Tensor (N,), int64
        The entry whose log-probability is wanted.
    dtype : torch.dtype
        Of the logits.
    """

    def __init__(self, labels: Tensor, dtype: torch.dtype) -> None:
        self._labels = labels
        self._highest = torch.full(labels.shape, _LOWEST, dtype=dtype, device=labels.device)
        # Sums of e and e · x with x = logit - highest and e = exp(x).
        self._total = torch.zeros_like(self._highest)
        self._weighted = torch.zeros_like(self._highest)
        self._target = torch.zeros_like(self._highest)

    def fold(
        self,
        tile: Tensor,
        head: Head,
        rows: slice,
        columns: Columns,
        shifted: Tensor,
        scratch: Tensor,
    ) -> None:
        """Take in the logits of some tokens, for a run of vocabulary entries.

        ``shifted`` and ``scratch`` are overwritten; ``shifted`` may be the tile itself.
        """
        if head.backend == "triton":
            from . import _triton

            state = (self._highest, self._total, self._weighted, self._target)
            _triton.fold(tile, head, columns, self._labels[rows], *(x[rows] for x in state))
            return
        first = columns.entries.start
        index, inside = label_in_tile(self._labels[rows], first, tile.shape[1])
        target = tile.gather(1, index[:, None])[:, 0]
        self._target[rows] = torch.where(inside, target, self._target[rows])

        before, total = self._highest[rows], self._total[rows]
        highest = torch.maximum(before, tile.amax(-1))
        head.log_softmax_into(shifted, tile, highest)
        torch.exp(shifted, out=scratch)
        # A higher reference shrinks every earlier e, and moves every earlier x.
        move = before - highest
        decay = move.exp()
        weighted = decay * (self._weighted[rows] + move * total)
        self._total[rows] = decay * total + scratch.sum(-1)
        # No dot product: those may be of less precision, as TF32 is, where products are allowed to.
        self._weighted[rows] = weighted + scratch.mul_(shifted).sum(-1)
        self._highest[rows] = highest

    def finish(self) -> Softmax:
        """Return the results, once every entry has passed by."""
        # A row without a finite logit has total 0: entropy 0, as in the core.
        total = torch.where(self._total > 0, self._total, 1.0)
        log_total = total.log()
        return Softmax(
            logprobs=(self._target - self._highest) - log_total,
            entropy=log_total - self._weighted / total,
            normalizer=self._highest + log_total,
        )


class Pull(NamedTuple):
    """How a loss pulls at the softmax of N tokens; shape (N,) each, in the dtype of the logits.

    Attributes
    ----------
    logprobs : Tensor
        Its derivative by the log-probability of the label.
    entropy : Tensor or None
        Its derivative by the entropy; None if there is none at all.
    """

    logprobs: Tensor
    entropy: Tensor | None

    def moved(self) -> Tensor:
        """Return which tokens are pulled at; NaN pulls."""
        moved = self.logprobs != 0
        return moved if self.entropy is None else moved | (self.entropy != 0)

    def take(self, rows: Tensor | slice) -> Pull:
        """Return the pull at some of the tokens."""
        return Pull(self.logprobs[rows], None if self.entropy is None else self.entropy[rows])

    def gradient(
        self,
        tile: Tensor,
        head: Head,
        softmax: Softmax,
        labels: Tensor,
        columns: Columns,
        scratch: Tensor,
        *,
        exact: bool,
    ) -> Tensor:
        r"""Return the gradient by the products that the logits of a tile came from.

        With pulls a at the log-probability of label y and b at the entropy H, the gradient by
        logit v is :math:`a 1[v = y] - p_v (a + b (\log p_v + H))`. The tile and ``scratch`` are
        overwritten; the result is the one or the other, rounded to the operands of the next
        products unless it has to be exact.
        """
        if head.backend == "triton":
            from . import _triton

            return _triton.gradient(
                tile, head, columns, labels, softmax, self, scratch, exact=exact
            )
        first, p = columns.entries.start, scratch
        slope = head.softcap_slope(tile)
        at_label = self.logprobs / head.temperature
        head.log_softmax_into(tile, tile, softmax.normalizer)
        torch.exp(tile, out=p)
        if self.entropy is None:
            torch.mul(p, -at_label[:, None], out=tile)
        else:
            by_surprise = self.entropy / head.temperature
            constant = -(at_label + by_surprise * softmax.entropy)
            torch.addcmul(constant[:, None], tile, by_surprise[:, None], value=-1, out=tile)
            tile.mul_(p)
        index, inside = label_in_tile(labels, first, tile.shape[1])
        tile.scatter_add_(1, index[:, None], torch.where(inside, at_label, 0.0)[:, None])
        if slope is not None:
            tile.mul_(slope)
        return tile


def label_in_tile(labels: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """Return each label's place among ``width`` entries from ``first``, and if it is there."""
    local = labels - first
    return local.clamp(0, width - 1), (local >= 0) & (local < width)


def spans(size: int, width: int) -> Iterator[slice]:
    """Cut ``size`` rows into runs of about equal length, ``width`` at most."""
    pieces = -(-size // width)
    for piece in range(pieces):
        yield slice(piece * size // pieces, (piece + 1) * size // pieces)
