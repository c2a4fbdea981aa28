"""Softmax of hidden states and its gradients, computed tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ._gradients import Gradients, GradientSums, Needs
from ._tiles import Head, OutputGrads, RunningSoftmax, Softmax, Tile, VocabSlice, even_slices

# On a CPU two tiles of 2 MB fit into the cache together with the operands of the products; a GPU
# needs more rows and columns for full load.
_TILES = {"cpu": Tile(512, 1024), "cuda": Tile(2048, 8192)}


def choose_tile(device: torch.device) -> Tile:
    """Return the size of the tiles of a device."""
    return _TILES.get(device.type, _TILES["cuda"])


def softmax_forward(head: Head, hidden: Tensor, labels: Tensor, tile: Tile) -> Softmax:
    """Return the softmax of N tokens, hidden (N, H); all labels are in the vocabulary."""
    hidden, labels = hidden.to(head.operands), labels.long()
    running = RunningSoftmax(labels, head.sum_dtype)
    logits, scratch = (tile_buffer(head, labels.shape[0], tile) for _ in range(2))
    # The outer loop is over the vocabulary: the weight is read, and converted, once.
    for vocab in head.vocab_slices(tile.entries):
        for rows in even_slices(labels.shape[0], tile.tokens):
            block, free = tile_view(logits, rows, vocab), tile_view(scratch, rows, vocab)
            head.logits_into(block, hidden[rows], vocab)
            running.update(block, head, rows, vocab, block, free)
    return running.result()


def softmax_backward(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    softmax: Softmax,
    grads: OutputGrads,
    needs: Needs,
    tile: Tile,
) -> Gradients:
    """Return the gradients that are needed, from recomputed logits.

    Tokens without a gradient are skipped.
    """
    size, dtype = labels.shape[0], hidden.dtype
    active = selected_rows(grads.has_grad())
    if active is not None:
        hidden, labels, grads = hidden[active], labels[active], grads.take(active)
        softmax = Softmax(*(x[active] for x in softmax))
    hidden, labels = hidden.to(head.operands), labels.long()
    sums = GradientSums(head, hidden, needs)
    logits, scratch = (tile_buffer(head, labels.shape[0], tile) for _ in range(2))
    for vocab in head.vocab_slices(tile.entries):
        sums.begin(vocab)
        for rows in even_slices(labels.shape[0], tile.tokens):
            block, free = tile_view(logits, rows, vocab), tile_view(scratch, rows, vocab)
            head.logits_into(block, hidden[rows], vocab)
            gradient = grads.take(rows).logit_gradient(
                block,
                head,
                Softmax(*(x[rows] for x in softmax)),
                labels[rows],
                vocab,
                free,
                exact=needs.bias,
            )
            sums.add(gradient, hidden[rows], sums.hidden[rows], vocab)
        sums.store(vocab)
    by_hidden = sums.hidden
    if active is not None and needs.hidden:
        by_hidden = scatter_rows(by_hidden, active, size)
    return sums.result(by_hidden, dtype)


def selected_rows(mask: Tensor) -> Tensor | None:
    """Return the indices at which a mask (N,) is True, or None if it is True everywhere."""
    rows = mask.nonzero()[:, 0]
    return None if rows.shape[0] == mask.shape[0] else rows


def scatter_rows(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Return an array of ``size`` rows with the values at ``rows``, 0 elsewhere."""
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, rows, values)


def tile_buffer(head: Head, tokens: int, tile: Tile) -> Tensor:
    """Allocate memory for one tile."""
    rows, entries = min(tokens, tile.tokens), min(head.weight.shape[0], tile.entries)
    return torch.empty(rows * entries, dtype=head.sum_dtype, device=head.weight.device)


def tile_view(buffer: Tensor, rows: slice, vocab: VocabSlice) -> Tensor:
    """Return the beginning of a buffer as a contiguous tile."""
    tokens = rows.stop - rows.start
    entries = vocab.entries.stop - vocab.entries.start
    return buffer[: tokens * entries].view(tokens, entries)
