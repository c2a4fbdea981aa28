"""Sizes of what ``gpu.py`` measures, and how it measures time, memory and waits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

GIGABYTE = 2**30


@dataclass(frozen=True)
class Sizes:
    """The device and the sizes of what is measured on it."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    vocabulary: int = 151_936
    hidden: int = 2048
    layers: int = 28
    tokens: int = 8192
    prompt: int = 256
    response: int = 96
    long_prompt: int = 1000
    long_response: int = 800
    rows: tuple[int, ...] = (64, 256)
    optimised: int = 2**30
    rewards: int = 4096
    steps: int = 30

    @classmethod
    def of(cls, rehearse: bool) -> Sizes:
        """Return the sizes of a measurement, or tiny ones for a CPU."""
        if not rehearse:
            return cls()
        return cls(
            device="cpu",
            vocabulary=3000,
            hidden=64,
            layers=2,
            tokens=256,
            prompt=20,
            response=16,
            long_prompt=150,
            long_response=40,
            rows=(4, 8),
            optimised=2**16,
            rewards=64,
            steps=1,
        )


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of a call that has been made before."""
    call()
    found = []
    for _ in range(repeats):
        synchronise()
        started = time.perf_counter()
        call()
        synchronise()
        found.append(1000 * (time.perf_counter() - started))
    return round(min(found), 3)


def peak(call: Callable[[], object]) -> float | None:
    """Return the most memory that a call takes beyond what is there, in GiB; None on a CPU."""
    if not torch.cuda.is_available():
        call()
        return None
    synchronise()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronise()
    return round((torch.cuda.max_memory_allocated() - before) / GIGABYTE, 3)


def waits(call: Callable[[], object]) -> int | None:
    """Return how often a call waits for the GPU; None on a CPU."""
    if not torch.cuda.is_available():
        call()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)
