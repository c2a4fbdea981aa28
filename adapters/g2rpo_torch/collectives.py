"""Collectives for statistics of the global batch: gather rollouts, add up totals."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
import torch.distributed as dist

from g2rpo import BatchTotals

__all__ = ["GatheredRollouts", "gather_rollouts", "reduce_totals"]


class GatheredRollouts(NamedTuple):
    """The rollouts of all processes, in the order of their ranks.

    Attributes
    ----------
    arrays : tuple of Tensor
        The arrays with the rows of every process; without gradient.
    local : slice
        The rows of this process.
    """

    arrays: tuple[torch.Tensor, ...]
    local: slice


def gather_rollouts(
    *arrays: torch.Tensor, group: dist.ProcessGroup | None = None
) -> GatheredRollouts:
    """Gather the per-rollout vectors of all processes, bit for bit.

    Advantages and other statistics of the result are those of the global batch: a group's rollouts,
    and a task's, may be on several processes.

    Parameters
    ----------
    *arrays : Tensor
        Rewards, group and task labels, lengths: arrays with one row per rollout, shapes (N, ...).
        N is the number of rollouts of this process, which may be 0 and differ between processes.
        Labels must be global: number prompts across processes. Number, dtypes and trailing shapes
        of the arrays must be equal on all processes.
    group : ProcessGroup, optional
        Process group; the default group by default.

    Returns
    -------
    GatheredRollouts
        The arrays with all rows, and the rows of this process. Without ``torch.distributed`` the
        arrays themselves.

    Raises
    ------
    TypeError
        If there is no array, or an argument is no tensor.
    ValueError
        If the arrays of this process differ in length or device; on every process, if processes
        differ in number, dtype or trailing shape of the arrays.

    Notes
    -----
    Two collectives: sizes, then all rows as bytes. Every process of the group must call it.

    Examples
    --------
    >>> rewards, groups = torch.tensor([0.0, 1.0]), torch.tensor([7, 7])
    >>> (rewards, groups), local = gather_rollouts(rewards, groups)
    >>> from g2rpo import grpo_advantages
    >>> grpo_advantages(rewards, groups)[local]
    tensor([-0.7071,  0.7071])
    """
    rows = _rows_of(arrays)
    arrays = tuple(array.detach() for array in arrays)
    if not _is_distributed():
        return GatheredRollouts(arrays, slice(0, rows))
    own = _on_backend_device(torch.cat([_as_bytes(array) for array in arrays], dim=1), group)
    sizes = _sizes_of_all(rows, arrays, own.device, group)
    padded = own.new_zeros((max(sizes), own.shape[1]))
    padded[:rows] = own
    received = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(received, padded, group=group)
    whole = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    widths = [_row_bytes(array) for array in arrays]
    columns = whole.to(arrays[0].device).split(widths, dim=1)
    start = sum(sizes[: dist.get_rank(group)])
    gathered = (_from_bytes(column, like) for column, like in zip(columns, arrays, strict=True))
    return GatheredRollouts(tuple(gathered), slice(start, start + rows))


def reduce_totals(totals: BatchTotals, /, *, group: dist.ProcessGroup | None = None) -> BatchTotals:
    """Return the totals of the whole mini-batch from those of each process.

    With them, the losses of :func:`g2rpo.g2rpo_loss` for the micro-batches of all processes sum to
    that of the whole mini-batch, and so do their gradients. Where data parallelism takes the *mean*
    of the gradients over processes, multiply the loss by the world size.

    Parameters
    ----------
    totals : BatchTotals
        Totals of this process's rollouts, from :func:`g2rpo.batch_totals`; tensors.
    group : ProcessGroup, optional
        Process group; the default group by default.

    Returns
    -------
    BatchTotals
        Totals of all processes; ``totals`` itself without ``torch.distributed``.

    Examples
    --------
    >>> from g2rpo import batch_totals
    >>> reduce_totals(batch_totals(torch.tensor([[True, True], [True, False]]))).tokens
    tensor(3.)
    """
    if not _is_distributed():
        return totals
    parts = [torch.as_tensor(count).reshape(1) for count in totals[:2]]
    if totals.task_tokens is not None:
        parts.append(totals.task_tokens)
        if totals.task_entropy is not None:
            parts.append(totals.task_entropy * totals.task_tokens)
    sums = _on_backend_device(torch.cat(parts), group)
    dist.all_reduce(sums, group=group)
    added = sums.to(parts[0].device).split([len(part) for part in parts])
    (tokens,), (sequences,), *of_tasks = added
    if len(of_tasks) < 2:
        return BatchTotals(tokens, sequences, *of_tasks)
    task_tokens, task_entropies = of_tasks
    # A task without tokens has a sum of 0 too.
    means = task_entropies / task_tokens.clamp(min=1)
    return BatchTotals(tokens, sequences, task_tokens, means)


def _rows_of(arrays: tuple[torch.Tensor, ...]) -> int:
    """Check the arrays of this process; return its number of rollouts."""
    if not arrays:
        raise TypeError("gather_rollouts needs at least one tensor")
    for index, array in enumerate(arrays):
        if not isinstance(array, torch.Tensor):
            raise TypeError(f"arrays[{index}] must be a tensor, got {type(array).__name__}")
        if array.ndim == 0:
            raise ValueError(f"arrays[{index}] must have shape (N, ...), got ()")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"arrays[{index}] must have as many rows as arrays[0], {arrays[0].shape[0]}, "
                f"got shape {tuple(array.shape)}"
            )
        if array.device != arrays[0].device:
            raise ValueError(
                f"arrays[{index}] must be on the device of arrays[0], {arrays[0].device}, "
                f"got {array.device}"
            )
    return arrays[0].shape[0]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _on_backend_device(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """Return the tensor on a device of the group's backend: NCCL supports no CPU memory."""
    return tensor.cuda() if dist.get_backend(group) == "nccl" else tensor.cpu()


def _sizes_of_all(
    rows: int,
    arrays: tuple[torch.Tensor, ...],
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> list[int]:
    """Return the number of rollouts of every process, or raise the same error on all of them."""
    kinds = ", ".join(f"{array.dtype} {('N', *array.shape[1:])}" for array in arrays)
    text = kinds.replace("torch.", "").replace("'", "").encode()
    header = torch.tensor([rows, zlib.crc32(text), len(text)], device=device)
    headers = [torch.empty_like(header) for _ in range(dist.get_world_size(group))]
    dist.all_gather(headers, header, group=group)
    sizes, codes, lengths = zip(*(each.tolist() for each in headers), strict=True)
    if len(set(codes)) > 1:
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
        padded[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        texts = [torch.empty_like(padded) for _ in headers]
        dist.all_gather(texts, padded, group=group)
        given = "; ".join(
            f"process {rank} brings {bytes(each[:length].tolist()).decode()}"
            for rank, (each, length) in enumerate(zip(texts, lengths, strict=True))
        )
        raise ValueError(f"every process must bring the same kinds of arrays, but {given}")
    return list(sizes)


def _row_bytes(array: torch.Tensor) -> int:
    return math.prod(array.shape[1:]) * array.element_size()


def _as_bytes(array: torch.Tensor) -> torch.Tensor:
    # A copy: a single row of a column slice counts as contiguous, whatever its stride.
    rows = array.clone(memory_format=torch.contiguous_format)
    return rows.reshape(array.shape[0], math.prod(array.shape[1:])).view(torch.uint8)


def _from_bytes(column: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    own = column.clone(memory_format=torch.contiguous_format)
    return own.view(like.dtype).reshape(-1, *like.shape[1:])
