"""Ranks that train one policy together, their collectives, and how work is divided among them.

All ranks run the same code in the same order. Every method of :class:`Ranks` that exchanges values
is a collective: all ranks must call it. With one rank none of them needs ``torch.distributed``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from g2rpo._shown import typed_error_text
from g2rpo_torch import gather_rollouts

from .errors import RunError, SharedError
from .launch import Launch

# The others wait while the main rank writes a checkpoint or plots, however long that takes. They
# wait on the CPU: on a GPU a collective that takes as long has lost a rank.
_TIMEOUT = timedelta(hours=6)
_GPU_TIMEOUT = timedelta(minutes=15)
# Gradients are reduced in buckets of this many entries, to avoid a second copy of all of them.
_BUCKET = 2**25
_JOINS = {"max": np.maximum, "min": np.minimum}


class Share(NamedTuple):
    """One rank's share of ``total`` equal pieces of work.

    Attributes
    ----------
    total : int
        Pieces of all ranks.
    own : tuple of int
        Numbers of this rank's pieces, ascending; may be empty.
    padded : tuple of int
        The same with repeats, whose results are discarded, so that all ranks have equally many.
    """

    total: int
    own: tuple[int, ...]
    padded: tuple[int, ...]


@dataclass(frozen=True)
class Ranks:
    """The ranks that train together, seen from one of them.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        World size.

    Examples
    --------
    >>> Ranks().share(3)
    Share(total=3, own=(0, 1, 2), padded=(0, 1, 2))
    >>> Ranks(rank=1, size=2).share(3)
    Share(total=3, own=(1, 2), padded=(1, 2))
    >>> Ranks(rank=0, size=2).share(3)
    Share(total=3, own=(0,), padded=(0, 0))
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank shows the run and writes its folder."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Divide pieces of work evenly; some ranks get one less.

        Round-robin, each round starting with the next rank: tasks alternate in the data, so a fixed
        order would always give a rank the same tasks.
        """
        size = self.size
        own = tuple(n for n in range(total) if (n + n // size) % size == self.rank)
        missing = -(-total // size) - len(own)
        return Share(total, own, own + (own[-1] if own else 0,) * missing)

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on any rank."""
        return self.max(int(flag)) > 0

    def max(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        return max(self.gather_objects(value))

    def sum(self, value: int) -> int:
        """Return the sum of all ranks' values."""
        return sum(self.gather_objects(value))

    def gather_rows(self, *columns: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], slice]:
        """Concatenate the rows of all ranks, in the order of the ranks.

        Parameters
        ----------
        *columns : Tensor (N, ...)

        Returns
        -------
        columns : tuple of Tensor (M, ...)
            The same on every rank.
        own : slice
            Rows of this rank.
        """
        if self.size == 1:
            return columns, slice(0, len(columns[0]))
        gathered, own = gather_rollouts(*columns)
        return gathered, own

    def gather_sorted(
        self, numbers: torch.Tensor, *columns: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Gather the rows of all ranks, sorted by their numbers.

        Parameters
        ----------
        numbers : Tensor (N,), int64
            Number of each of this rank's rows, ascending, as :meth:`share` assigned them.
        *columns : Tensor (N, ...)
            On the CPU.

        Returns
        -------
        columns : tuple of Tensor (M, ...)
            The same on every rank.
        own : Tensor (N,), int64
            Indices of this rank's rows.
        """
        ranks = torch.full_like(numbers, self.rank)
        (numbers, ranks, *gathered), _ = self.gather_rows(numbers, ranks, *columns)
        order = numbers.argsort(stable=True)
        own = (ranks[order] == self.rank).nonzero()[:, 0]
        return tuple(column[order] for column in gathered), own

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks in their order; each must be representable as JSON."""
        if self.size == 1:
            return [value]
        # A line each: JSON writes a line break inside of a text as two other characters.
        line = (json.dumps(value) + "\n").encode()
        (lines,), _ = gather_rollouts(torch.frombuffer(bytearray(line), dtype=torch.uint8))
        return [json.loads(each) for each in lines.numpy().tobytes().splitlines()]

    def gather_sorted_objects(self, numbers: Sequence[int], rows: Sequence[Any]) -> list[Any]:
        """Return the rows of all ranks, sorted by their numbers; each representable as JSON."""
        gathered = self.gather_objects(list(zip(numbers, rows, strict=True)))
        numbered = [row for part in gathered for row in part]
        return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]

    def reduce_by_name(self, values: dict[str, Any]) -> dict[str, Any]:
        """Reduce numbers, or lists of numbers of equal length, over all ranks.

        Sums, except for the largest value where a name ends in /max and the smallest where it ends
        in /min. A rank may lack some of the names.
        """
        reduced: dict[str, Any] = {}
        for each in self.gather_objects(values):
            for name, value in each.items():
                if name in reduced:
                    join = _JOINS.get(name.rpartition("/")[2], np.add)
                    value = join(reduced[name], value).tolist()
                reduced[name] = value
        return reduced

    def require_same_weights(self, model: torch.nn.Module) -> None:
        """Raise `SharedError` unless all ranks have loaded the same weights."""
        if self.size == 1:
            return
        sums = self.gather_objects(
            [float(weight.detach().sum(dtype=torch.float64)) for weight in model.parameters()]
        )
        # Devices may add in different orders.
        tolerance = {"rel_tol": 1e-6, "abs_tol": 1e-6}
        for rank, other in enumerate(sums):
            pairs = zip(sums[0], other, strict=True)
            if not all(math.isclose(*pair, **tolerance) for pair in pairs):
                raise SharedError(
                    f"processes 0 and {rank} have loaded different weights; --model must name the "
                    "same files on every machine"
                )

    def all_reduce_gradients(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Replace the gradients of every rank by their sums.

        A weight that has no gradient on any rank keeps none.
        """
        if self.size == 1:
            return
        has_gradient = torch.tensor([[weight.grad is not None for weight in weights]])
        (flags,), _ = self.gather_rows(has_gradient)
        with_grad = [weight for weight, has in zip(weights, flags.any(0), strict=True) if has]
        for weight in with_grad:
            if weight.grad is None:
                # No dtype stands for gradients of 16-bit weights that add up in float32.
                weight.grad = torch.zeros_like(weight, dtype=weight.grad_dtype or torch.float32)
        for bucket in buckets(with_grad, _BUCKET):
            # 16-bit gradients are summed in float32, as within a process.
            flat = torch.cat([weight.grad.flatten().float() for weight in bucket])  # type: ignore[union-attr]
            dist.all_reduce(flat)
            pieces = flat.split([weight.numel() for weight in bucket])
            for weight, piece in zip(bucket, pieces, strict=True):
                weight.grad.copy_(piece.view_as(weight))  # type: ignore[union-attr]

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Raise on all ranks if one of them raises inside the context; also a barrier at its end.

        No collectives inside: a rank would wait for ever for one that has raised.

        Raises
        ------
        SharedError
            On every rank, with the text of the lowest rank's error. An error that is no
            :class:`~g2rpo_trainer.errors.RunError` is raised unchanged where it happened.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        texts = self.gather_objects(None if failure is None else _error_text(failure))
        first = next((rank for rank, text in enumerate(texts) if text is not None), None)
        if failure is not None and not isinstance(failure, RunError):
            raise failure
        if first is not None:
            raise SharedError(texts[first]) from failure


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Initialise ``torch.distributed`` as the launcher says, for the duration of the context."""
    launch = Launch.read()
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if launch.size == 1:
        yield Ranks()
        return
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    # CPU tensors need gloo, too.
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=_TIMEOUT)
    try:
        if has_gpus:
            world: Any = dist.group.WORLD
            world._get_backend(torch.device("cuda"))._set_default_timeout(_GPU_TIMEOUT)
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        # An inference engine may have destroyed it already.
        if dist.is_initialized():
            dist.destroy_process_group()


def buckets(weights: Sequence[torch.nn.Parameter], size: int) -> Iterator[list[torch.nn.Parameter]]:
    """Yield runs of consecutive weights of one device that fit a bucket, or single larger ones.

    ``size`` is the number of entries of a bucket.
    """
    bucket: list[torch.nn.Parameter] = []
    entries = 0
    for weight in weights:
        is_full = entries + weight.numel() > size
        if bucket and (is_full or weight.device != bucket[0].device):
            yield bucket
            bucket, entries = [], 0
        bucket.append(weight)
        entries += weight.numel()
    if bucket:
        yield bucket


def _error_text(error: Exception) -> str:
    if isinstance(error, RunError):
        return str(error)
    return f"process {os.environ.get('RANK', '0')} failed: {typed_error_text(error)}"
