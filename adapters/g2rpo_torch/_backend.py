"""What works on the tiles: PyTorch's operations, or Triton's kernels where they are faster."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from ._linear import choose_tile, softmax_of, softmax_pulled
from ._sums import Needs
from ._tiles import Backend, Head, Pull

Choice = Literal["auto", "portable", "triton"]

_BOTH: tuple[Backend, Backend] = ("portable", "triton")

_logger = logging.getLogger(__name__)

# Fewer say nothing about speed, and cost little either way.
_ENOUGH_TOKENS = 256

#: What is known, for each device, pair of dtypes and size of the head.
_verdicts: dict[tuple[object, ...], Backend] = {}


def choose_backend(
    choice: Choice, head: Head, hidden: Tensor, labels: Tensor, ignore_index: int
) -> Backend:
    """Return what works on the tiles of checked tokens, hidden (N, H) and labels (N,).

    With "auto" on CUDA, the first call with enough tokens of each size tries both.
    """
    if choice not in get_args(Choice):
        raise ValueError(f"backend must be one of {get_args(Choice)}, got {choice!r}")
    if choice == "triton":
        if obstacle := _obstacle(hidden.device.type, head.dtype):
            raise ValueError(f"backend must be 'portable' or 'auto': {obstacle}")
        return "triton"
    is_possible = hidden.device.type == "cuda" and not torch.compiler.is_compiling()
    if choice == "portable" or not is_possible or _obstacle("cuda", head.dtype):
        return "portable"
    key = (hidden.device, hidden.dtype, head.operands, len(head.weight), hidden.shape[1])
    if key not in _verdicts:
        with torch.no_grad():
            counts = labels != ignore_index
            if int(counts.sum()) < _ENOUGH_TOKENS:
                return "portable"
            _verdicts[key] = _faster(head, hidden[counts], labels[counts])
    return _verdicts[key]


@torch.compiler.assume_constant_result
def _obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Return why Triton cannot work here, or None."""
    if not _has_triton():
        return "triton is not installed; PyTorch's builds for CUDA bring it along"
    if dtype != torch.float32:
        return f"the kernels sum in float32, not in {dtype}"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton's kernels run on a CUDA device, not on {device}"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass(frozen=True)
class _Trial:
    """Time in milliseconds of one pass in both directions, and what came out."""

    milliseconds: float
    logprobs: Tensor
    entropy: Tensor
    by_hidden: Tensor

    def disagrees_with(self, other: _Trial) -> bool:
        """Tell whether more than rounding lies between two."""
        for ours, theirs in ((self.logprobs, other.logprobs), (self.entropy, other.entropy)):
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True):
                return True
        share = 1e-4 if self.by_hidden.dtype == torch.float32 else 1e-2
        distance = (self.by_hidden.float() - other.by_hidden.float()).norm()
        return not bool(distance <= share * other.by_hidden.float().norm())


def _faster(head: Head, hidden: Tensor, labels: Tensor) -> Backend:
    """Try both, say in one line of the log what came out, and return the one to keep."""
    where = (
        f"{len(labels):,} tokens, {len(head.weight):,} entries, hidden states of "
        f"{hidden.shape[1]:,}, "
        f"{str(hidden.dtype).removeprefix('torch.')}, {hidden.device}"
    )
    try:
        portable, ours = (_try(head._replace(backend=b), hidden, labels) for b in _BOTH)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        _logger.warning("portable tiles for %s; Triton's failed: %s", where, reason)
        return "portable"
    figures = f"portable {portable.milliseconds:.2f} ms, triton {ours.milliseconds:.2f} ms"
    if ours.disagrees_with(portable):
        _logger.warning("portable tiles for %s; results differ (%s)", where, figures)
        return "portable"
    faster = _BOTH[ours.milliseconds < portable.milliseconds]
    _logger.info("%s tiles for %s (%s)", faster, where, figures)
    return faster


def _try(head: Head, hidden: Tensor, labels: Tensor) -> _Trial:
    tile = choose_tile(hidden.device)
    # The product for the weight's gradient is the same either way, and its memory is large.
    needs = Needs(hidden=True, weight=False, low_rank=False, bias=False)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        softmax = softmax_of(head, hidden, labels, tile)
        pull = Pull(torch.ones_like(softmax.entropy), torch.ones_like(softmax.entropy))
        gradients = softmax_pulled(head, hidden, labels, softmax, pull, needs, tile)
        return softmax.logprobs, softmax.entropy, gradients.hidden

    with torch.autocast(hidden.device.type, enabled=False):
        results = run()  # compiles the kernels, too
        return _Trial(_milliseconds(run, hidden.device), *results)


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the time that the device takes for a call."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
