"""Several processes that train one policy: who they are, what each does, and what they share.

All of them run the same code in the same order. Where one of them knows more than the others, a
method of :class:`Processes` makes it known to all; every process has to call it then.
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

from g2rpo_torch import gather_rollouts
from g2rpo_trainer.errors import RunError, SharedError
from g2rpo_trainer.launch import Launch

# The others wait while the first process writes a checkpoint or plots, however long that takes.
_PATIENCE = timedelta(hours=6)
# Gradients travel in pieces of this many entries, so that no second copy of all is needed.
_BUCKET = 2**25
_JOINS = {"max": np.maximum, "min": np.minimum}


class Share(NamedTuple):
    """What one of several processes does of ``total`` equal pieces of work.

    Attributes
    ----------
    total : int
        Pieces of all processes.
    own : tuple of int
        Numbers of this process's pieces, ascending; there may be none.
    padded : tuple of int
        The same with repeats, whose results are thrown away: as many as every other process has.
    """

    total: int
    own: tuple[int, ...]
    padded: tuple[int, ...]


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        How many there are.

    Examples
    --------
    >>> Processes.current().share(3)
    Share(total=3, own=(0, 1, 2), padded=(0, 1, 2))
    >>> Processes(rank=1, size=2).share(3)
    Share(total=3, own=(1, 2), padded=(1, 2))
    >>> Processes(rank=0, size=2).share(3)
    Share(total=3, own=(0,), padded=(0, 0))
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return those of ``torch.distributed``, or this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this process shows the run and writes its folder."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """Divide pieces of work; each process gets as many, or one less.

        They are dealt like cards, every round beginning with the next process, because tasks take
        turns in the data: else each process would always get the same ones.
        """
        size = self.size
        own = tuple(n for n in range(total) if (n + n // size) % size == self.rank)
        missing = -(-total // size) - len(own)
        return Share(total, own, own + (own[-1] if own else 0,) * missing)

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on any process."""
        return self.largest(int(flag)) > 0

    def largest(self, value: int) -> int:
        """Return the largest of all processes' values."""
        return int(self._values(value).max())

    def total(self, value: int) -> int:
        """Return the sum of all processes' values."""
        return int(self._values(value).sum())

    def _values(self, value: int) -> torch.Tensor:
        (values,), _ = gather_rollouts(torch.tensor([value]))
        return values

    def gather(
        self, numbers: torch.Tensor, *columns: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Bring the rows of all processes together, ordered by their numbers.

        Parameters
        ----------
        numbers : Tensor (N,), int64
            Number of each of this process's rows, ascending, as :meth:`share` gave them out.
        *columns : Tensor (N, ...)
            On the CPU.

        Returns
        -------
        columns : tuple of Tensor (M, ...)
            With the rows of all processes, the same everywhere.
        own : Tensor (N,), int64
            Which rows are this process's.
        """
        ranks = torch.full_like(numbers, self.rank)
        (numbers, ranks, *gathered), _ = gather_rollouts(numbers, ranks, *columns)
        order = numbers.argsort(stable=True)
        own = (ranks[order] == self.rank).nonzero()[:, 0]
        return tuple(column[order] for column in gathered), own

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all processes in the order of their ranks; they travel as JSON."""
        if self.size == 1:
            return [value]
        # A line each: JSON writes a line break inside of a text as two other characters.
        line = (json.dumps(value) + "\n").encode()
        (lines,), _ = gather_rollouts(torch.frombuffer(bytearray(line), dtype=torch.uint8))
        return [json.loads(each) for each in lines.numpy().tobytes().splitlines()]

    def gather_rows(self, numbers: Sequence[int], rows: Sequence[Any]) -> list[Any]:
        """Return the rows of all processes, which JSON can hold, ordered by their numbers."""
        gathered = self.gather_objects(list(zip(numbers, rows, strict=True)))
        numbered = [row for part in gathered for row in part]
        return [row for _, row in sorted(numbered, key=lambda pair: pair[0])]

    def add_up(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the sums of all processes' values by name.

        Where a name ends in /max it is the largest value, in /min the smallest.
        They are numbers, or lists of as many numbers; a process may lack some of the names.
        """
        added: dict[str, Any] = {}
        for each in self.gather_objects(values):
            for name, value in each.items():
                if name in added:
                    join = _JOINS.get(name.rpartition("/")[2], np.add)
                    value = join(added[name], value).tolist()
                added[name] = value
        return added

    def require_same_weights(self, model: torch.nn.Module) -> None:
        """Raise `SharedError` unless all processes have loaded the same weights."""
        if self.size == 1:
            return
        sums = self.gather_objects(
            [float(weight.detach().sum(dtype=torch.float64)) for weight in model.parameters()]
        )
        # Devices may differ in the order in which they add.
        tolerance = {"rel_tol": 1e-6, "abs_tol": 1e-6}
        for rank, other in enumerate(sums):
            pairs = zip(sums[0], other, strict=True)
            if not all(math.isclose(*pair, **tolerance) for pair in pairs):
                raise SharedError(
                    f"processes 0 and {rank} have loaded different weights; --model must name the "
                    "same files on every machine"
                )

    def add_gradients(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, which then have the sums.

        A weight without a gradient on every process keeps none.
        """
        if self.size == 1:
            return
        has_gradient = torch.tensor([[weight.grad is not None for weight in weights]])
        (flags,), _ = gather_rollouts(has_gradient)
        moved = [weight for weight, has in zip(weights, flags.any(0), strict=True) if has]
        for weight in moved:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        for bucket in _buckets(moved):
            # Sums of 16-bit numbers are taken in 32 bits, as within a process.
            flat = torch.cat([weight.grad.flatten().float() for weight in bucket])  # type: ignore[union-attr]
            dist.all_reduce(flat)
            pieces = flat.split([weight.numel() for weight in bucket])
            for weight, piece in zip(bucket, pieces, strict=True):
                weight.grad.copy_(piece.view_as(weight))  # type: ignore[union-attr]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes fail if one does, and wait for each other at the end.

        What happens inside must be each process's own affair: one that waits for another inside
        would wait for ever if that one fails.

        Raises
        ------
        SharedError
            On every process, with the text of the first one's error. An error that is no
            :class:`~g2rpo_trainer.errors.RunError` stays what it is where it happened.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        texts = self.gather_objects(None if failure is None else _told(failure))
        first = next((rank for rank, text in enumerate(texts) if text is not None), None)
        if failure is not None and not isinstance(failure, RunError):
            raise failure
        if first is not None:
            raise SharedError(texts[first]) from failure


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that a launcher has started, for as long as the context lasts."""
    launch = Launch.read()
    if launch.size == 1 or dist.is_initialized():
        yield Processes.current()
        return
    # What is on the CPU travels there.
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Processes.current()
    finally:
        # An engine for the rollouts may have done so at its end.
        if dist.is_initialized():
            dist.destroy_process_group()


def _buckets(weights: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Yield consecutive weights of one device, as many as a bucket holds, or a single one."""
    bucket: list[torch.nn.Parameter] = []
    entries = 0
    for weight in weights:
        is_full = entries + weight.numel() > _BUCKET
        if bucket and (is_full or weight.device != bucket[0].device):
            yield bucket
            bucket, entries = [], 0
        bucket.append(weight)
        entries += weight.numel()
    if bucket:
        yield bucket


def _told(error: Exception) -> str:
    if isinstance(error, RunError):
        return str(error)
    text = " ".join(str(error).split())
    return f"process {os.environ.get('RANK', '0')} failed: {type(error).__name__}: {text}"
