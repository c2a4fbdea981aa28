"""Choice between PyTorch's operations and Triton kernels for the tiles, by device and dtype."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from ._tiles import Backend, Head

Choice = Literal["auto", "portable", "triton"]

# Lowest compute capability for which the tests compile the kernels.
_CAPABILITY = (8, 0)


def choose_backend(choice: Choice, head: Head, device: torch.device) -> Backend:
    """Return the backend for the tiles of a head.

    "auto" is Triton where its kernels can run: on CUDA devices of compute capability 8.0 or more,
    for sums in float32, outside of ``torch.compile``.
    """
    if choice not in get_args(Choice):
        raise ValueError(f"backend must be one of {get_args(Choice)}, got {choice!r}")
    obstacle = _obstacle(device.type, head.sum_dtype)
    if choice == "triton" and obstacle:
        raise ValueError(f"backend must be 'portable' or 'auto': {obstacle}")
    if choice != "auto":
        return choice
    is_possible = device.type == "cuda" and obstacle is None and not torch.compiler.is_compiling()
    return "triton" if is_possible and _capability(device) >= _CAPABILITY else "portable"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@torch.compiler.assume_constant_result
def _obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Return the reason why the Triton kernels cannot run, or None."""
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
