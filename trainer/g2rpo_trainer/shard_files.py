"""Safetensors files of a sharded model: each rank writes some of them, and reads its rows.

The files are those of transformers: ``STEM.safetensors``, or where that would be large several of
them with ``STEM.safetensors.index.json``, so any number of processes reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .distributed import Ranks

PART = 2**31
"""Bytes of a file, and most that a rank holds in main memory at a time."""

_SUFFIX = ".safetensors"
_INDEX = f"{_SUFFIX}.index.json"


def write_parts(
    folder: Path,
    stem: str,
    values: Iterable[tuple[str, torch.Tensor]],
    ranks: Ranks,
    *,
    guard: Callable[[], AbstractContextManager[None]],
    part_bytes: int = PART,
) -> None:
    """Write whole tensors into files, which the ranks take in turns; a collective.

    Parameters
    ----------
    folder : Path
        Existing folder that all ranks see.
    stem : str
        Beginning of the files' names.
    values : iterable of (str, Tensor)
        Names and whole tensors, the same on every rank, made one at a time.
    ranks : Ranks
        Ranks that write.
    guard : callable
        Context of a write, which gives errors of the disk a better text.
    part_bytes : int
        Largest file, unless a single tensor is larger.
    """
    parts: dict[str, int] = {}
    own: dict[str, torch.Tensor] = {}
    part = size = total = 0
    for name, value in values:
        length = value.numel() * value.element_size()
        if size and size + length > part_bytes:
            part, size = part + 1, 0
            if part % ranks.size == 0:
                _write_own(folder, stem, part - ranks.size, own, ranks, guard)
                own = {}
        if part % ranks.size == ranks.rank:
            own[name] = value.detach().to("cpu", copy=True).contiguous()
        parts[name] = part
        size, total = size + length, total + length
    _write_own(folder, stem, part - part % ranks.size, own, ranks, guard)
    with ranks.raise_on_all_ranks(), guard():
        if ranks.is_main and part == 0:
            os.replace(_path(folder, stem, 0), folder / f"{stem}{_SUFFIX}")
        elif ranks.is_main:
            places = {name: _path(folder, stem, number).name for name, number in parts.items()}
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (folder / f"{stem}{_INDEX}").write_text(json.dumps(index, indent=2), encoding="utf-8")


def stored_tensors(folder: Path, stem: str) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors of a file or of its parts, without reading them.

    Yields
    ------
    name, value : str, Any
        A tensor without axes, or one whose rows are read where it is sliced.
    """
    index, names = folder / f"{stem}{_INDEX}", [f"{stem}{_SUFFIX}"]
    if index.exists():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = list(dict.fromkeys(places.values()))
    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (the file is no mapping)
                stored = file.get_slice(key)
                yield key, stored if stored.get_shape() else file.get_tensor(key)


def _write_own(
    folder: Path,
    stem: str,
    first: int,
    own: dict[str, torch.Tensor],
    ranks: Ranks,
    guard: Callable[[], AbstractContextManager[None]],
) -> None:
    """Write this rank's file of a turn, of which rank 0 has the first."""
    with ranks.raise_on_all_ranks(), guard():
        if own or (ranks.is_main and not first):
            path = _path(folder, stem, first + ranks.rank)
            save_file(own, path, metadata={"format": "pt"})


def _path(folder: Path, stem: str, part: int) -> Path:
    return folder / f"{stem}-{part + 1:05d}{_SUFFIX}"
