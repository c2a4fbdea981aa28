"""From hidden states to softmaxes and back to gradients, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ._sums import Gradients, GradientSums, Needs
from ._tiles import Columns, Head, Pull, RunningSoftmax, Softmax, Tile, spans

# On a CPU two tiles of 2 MB stay in the cache beside the operands of the products; a GPU wants
# enough rows and columns to fill it.
_TILES = {"cpu": Tile(512, 1024), "cuda": Tile(2048, 8192)}


def choose_tile(device: torch.device) -> Tile:
    """Return the size of the tiles of a device."""
    return _TILES.get(device.type, _TILES["cuda"])


def softmax_of(head: Head, hidden: Tensor, labels: Tensor, tile: Tile) -> Softmax:
    """Return the softmax of N tokens, hidden (N, H); labels are in the vocabulary."""
    hidden, labels = hidden.to(head.operands), labels.long()
    running = RunningSoftmax(labels, head.dtype)
    logits, scratch = (buffer_for(head, labels.shape[0], tile) for _ in range(2))
    # Entries outside, tokens inside: the weight is read, and converted, once.
    for columns in head.columns(tile.entries):
        for rows in spans(labels.shape[0], tile.tokens):
            block, free = cut(logits, rows, columns), cut(scratch, rows, columns)
            head.logits_into(block, hidden[rows], columns)
            running.fold(block, head, rows, columns, block, free)
    return running.finish()


def softmax_pulled(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    softmax: Softmax,
    pull: Pull,
    needs: Needs,
    tile: Tile,
) -> Gradients:
    """Return the gradients that are needed.

    The logits are computed again. Tokens without a pull take no part.
    """
    size, dtype = labels.shape[0], hidden.dtype
    moved = marked(pull.moved())
    if moved is not None:
        hidden, labels, pull = hidden[moved], labels[moved], pull.take(moved)
        softmax = Softmax(*(x[moved] for x in softmax))
    hidden, labels = hidden.to(head.operands), labels.long()
    sums = GradientSums(head, hidden, needs)
    logits, scratch = (buffer_for(head, labels.shape[0], tile) for _ in range(2))
    for columns in head.columns(tile.entries):
        sums.begin(columns)
        for rows in spans(labels.shape[0], tile.tokens):
            block, free = cut(logits, rows, columns), cut(scratch, rows, columns)
            head.logits_into(block, hidden[rows], columns)
            here = Softmax(*(x[rows] for x in softmax))
            gradient = pull.take(rows).gradient(
                block, head, here, labels[rows], columns, free, exact=needs.bias
            )
            sums.add(gradient, hidden[rows], sums.hidden[rows], columns)
        sums.store(columns)
    by_hidden = sums.hidden
    if moved is not None and needs.hidden:
        by_hidden = spread(by_hidden, moved, size)
    return sums.finish(by_hidden, dtype)


def marked(mask: Tensor) -> Tensor | None:
    """Return where a mask (N,) is True, or None if that is everywhere."""
    where = mask.nonzero()[:, 0]
    return None if where.shape[0] == mask.shape[0] else where


def spread(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Put values back to their rows among ``size``; 0 elsewhere."""
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, rows, values)


def buffer_for(head: Head, tokens: int, tile: Tile) -> Tensor:
    """Return memory for one tile."""
    rows, entries = min(tokens, tile.tokens), min(head.weight.shape[0], tile.entries)
    return torch.empty(rows * entries, dtype=head.dtype, device=head.weight.device)


def cut(buffer: Tensor, rows: slice, columns: Columns) -> Tensor:
    """Return the front of a buffer as a contiguous tile."""
    tokens = rows.stop - rows.start
    entries = columns.entries.stop - columns.entries.start
    return buffer[: tokens * entries].view(tokens, entries)
