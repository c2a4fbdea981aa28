"""Triton kernels for the elementwise part of the tiles: one pass over a tile in place of several.

The matrix products are those of PyTorch, so a tile is W h: bias, temperature and softcap are
applied when it is read. Every sum is computed by one program, without atomic operations: equal
inputs give equal bits.

This module is imported inside of functions, since only GPU builds of PyTorch depend on Triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from ._tiles import Head, OutputGrads, Softmax, VocabSlice

# As in `_tiles`: exp is 0 here, and there is no 0 * inf = NaN in p log p.
_FLOOR = tl.constexpr(-800.0)
_BLOCK = 2048
_WARPS = 8


def update(
    tile: Tensor,
    head: Head,
    vocab: VocabSlice,
    labels: Tensor,
    highest: Tensor,
    total: Tensor,
    weighted: Tensor,
    target: Tensor,
) -> None:
    """Update the running softmax statistics (N,) of the tokens of a tile of products, in place."""
    with torch.cuda.device_of(tile):
        _update[(tile.shape[0],)](
            tile,
            *_logit_inputs(tile, head, vocab),
            labels.contiguous(),
            highest,
            total,
            weighted,
            target,
            HAS_BIAS=vocab.bias is not None,
            HAS_CAP=head.softcap is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )


def logit_gradient(
    tile: Tensor,
    head: Head,
    vocab: VocabSlice,
    labels: Tensor,
    softmax: Softmax,
    grads: OutputGrads,
    scratch: Tensor,
    *,
    exact: bool,
) -> Tensor:
    """Return the gradient by a tile of products.

    It is in ``scratch``, rounded to the operands of the next products; in the tile itself if these
    are float32, or with ``exact``.
    """
    out = tile
    if head.operands != tile.dtype and not exact:
        out = scratch.view(-1).view(head.operands)[: tile.numel()].view(tile.shape)
    by_entropy = torch.zeros_like(grads.logprobs) if grads.entropy is None else grads.entropy
    with torch.cuda.device_of(tile):
        _gradient[(tile.shape[0], triton.cdiv(tile.shape[1], _BLOCK))](
            tile,
            *_logit_inputs(tile, head, vocab),
            labels.contiguous(),
            softmax.normalizer,
            softmax.entropy,
            grads.logprobs / head.temperature,
            by_entropy / head.temperature,
            out,
            HAS_BIAS=vocab.bias is not None,
            HAS_CAP=head.softcap is not None,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return out


def _logit_inputs(
    tile: Tensor, head: Head, vocab: VocabSlice
) -> tuple[int, int, Tensor, float, float]:
    """Return first entry and width of a tile, bias, and factors before and after the softcap."""
    bias = tile if vocab.bias is None else vocab.bias
    inverse = 1.0 / (head.softcap or head.temperature)
    factor = 1.0 if head.softcap is None else head.softcap / head.temperature
    return vocab.entries.start, tile.shape[1], bias, inverse, factor


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    # The closed form cancels near 0, where four terms of the series are exact in float32.
    square = x * x
    near = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.04, near, tl.where(x < 0, -far, far))


@triton.jit
def _logits(tile, row, columns, width, bias, inverse, factor, HAS_BIAS, HAS_CAP):  # type: ignore[no-untyped-def]
    """Return logits of one token; minus infinity at excluded entries and beyond the last one."""
    inside = columns < width
    logits = tl.load(tile + row * width + columns, mask=inside, other=0.0)
    excluded = columns >= width
    if HAS_BIAS:
        added = tl.load(bias + columns, mask=inside, other=-float("inf"))
        excluded = added == -float("inf")
        logits += added
    logits *= inverse
    if HAS_CAP:
        logits = _tanh(logits) * factor
    return tl.where(excluded, -float("inf"), logits)


@triton.jit
def _shifted(logits, reference):  # type: ignore[no-untyped-def]
    x = logits - reference
    # Not a maximum: NaN must stay NaN.
    return tl.where(x < _FLOOR, _FLOOR, x)


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    tile,
    first,
    width,
    bias,
    inverse,
    factor,
    labels,
    highest,
    total,
    weighted,
    target,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per token; see ``RunningSoftmax.update`` for the formulas."""
    row = tl.program_id(0).to(tl.int64)
    high = tl.load(highest + row)
    sum_e, sum_ex = tl.load(total + row), tl.load(weighted + row)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = _logits(tile, row, columns, width, bias, inverse, factor, HAS_BIAS, HAS_CAP)
        before, high = high, tl.maximum(high, tl.max(logits, 0))
        x = _shifted(logits, high)
        e = tl.exp(x)
        shift = before - high
        decay = tl.exp(shift)
        sum_ex = decay * (sum_ex + shift * sum_e) + tl.sum(e * x, 0)
        sum_e = decay * sum_e + tl.sum(e, 0)
    tl.store(highest + row, high)
    tl.store(total + row, sum_e)
    tl.store(weighted + row, sum_ex)
    label = tl.load(labels + row) - first
    if (label >= 0) & (label < width):
        logit = _logits(tile, row, label, width, bias, inverse, factor, HAS_BIAS, HAS_CAP)
        tl.store(target + row, logit)


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    tile,
    first,
    width,
    bias,
    inverse,
    factor,
    labels,
    normalizer,
    entropy,
    by_logprob,
    by_entropy,
    out,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per token and block of entries; see ``OutputGrads.logit_gradient``."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits = _logits(tile, row, columns, width, bias, inverse, factor, HAS_BIAS, HAS_CAP)
    x = _shifted(logits, tl.load(normalizer + row))
    a, b = tl.load(by_logprob + row), tl.load(by_entropy + row)
    result = -tl.exp(x) * (a + b * (x + tl.load(entropy + row)))
    result = tl.where(columns == tl.load(labels + row) - first, result + a, result)
    if HAS_CAP:
        tanh = logits / factor
        result *= tl.where(logits == -float("inf"), 0.0, 1 - tanh * tanh)
    tl.store(out + row * width + columns, result, mask=columns < width)
