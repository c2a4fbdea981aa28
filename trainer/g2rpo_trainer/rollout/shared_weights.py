"""Weights on their way to other processes of this machine, through memory that they share."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

# Pieces of this size go over one after the other, so that no second copy of all is needed.
_PIECE_BYTES = 2**28
# Where a tensor of any type may begin; also what an empty one takes.
_ALIGNMENT = 64


class Entry(NamedTuple):
    """Where a weight lies in a piece.

    Attributes
    ----------
    name, dtype : str
    shape : tuple of int
    start : int
        In bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


Piece = list[Entry]


def open_shared() -> int:
    """Return the descriptor of memory without a name, which is gone when nobody has it open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("weights")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_pieces(
    descriptor: int, weights: Iterable[tuple[str, torch.Tensor]], piece_bytes: int = _PIECE_BYTES
) -> Iterator[Piece]:
    """Put weights into shared memory, and say where; on going on the next ones overwrite them.

    Parameters
    ----------
    descriptor : int
        Of :func:`open_shared`.
    weights : iterable of str and Tensor
        On any device.
    piece_bytes : int
        Most bytes of a piece; a weight that has more is one by itself.
    """
    waiting: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, weight in weights:
        if waiting and size + _room(weight) > piece_bytes:
            yield _written(descriptor, waiting, size)
            waiting, size = [], 0
        waiting.append((name, weight))
        size += _room(weight)
    if waiting:
        yield _written(descriptor, waiting, size)


def read_piece(
    descriptor: int, piece: Piece, device: torch.device
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a copy of each weight of a piece on a device."""
    memory = mmap.mmap(descriptor, 0)
    for entry in piece:
        flat = _at(memory, entry.start, torch.Size(entry.shape), getattr(torch, entry.dtype))
        # A copy, since a loader may keep it until the rest of its layer is there.
        yield entry.name, flat.reshape(entry.shape).to(device, copy=True)


def _room(weight: torch.Tensor) -> int:
    bytes_taken = max(weight.numel(), 1) * weight.element_size()
    return -(-bytes_taken // _ALIGNMENT) * _ALIGNMENT


def _at(memory: mmap.mmap, start: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    count = shape.numel()
    # Not even an empty tensor may have a count of 0 there.
    return torch.frombuffer(memory, dtype=dtype, count=max(count, 1), offset=start)[:count]


def _written(descriptor: int, weights: list[tuple[str, torch.Tensor]], size: int) -> Piece:
    if os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)
    memory = mmap.mmap(descriptor, 0)
    piece, start = [], 0
    for name, weight in weights:
        _at(memory, start, weight.shape, weight.dtype).copy_(weight.detach().reshape(-1))
        dtype = str(weight.dtype).removeprefix("torch.")
        piece.append(Entry(name, dtype, tuple(weight.shape), start))
        start += _room(weight)
    return piece
