"""A loss and its gradients in one pass: each chunk's logits live until both are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._linear import buffer_for, cut, marked, spread
from ._sums import Gradients, GradientSums, Needs
from ._tiles import Head, Pull, RunningSoftmax, Softmax, Tile, spans
from ._token_loss import TokenLoss

# Of logits that may live at a time: a tenth of those of 4,096 tokens of a vocabulary of 151,936.
_CHUNK_BYTES = 1 << 28


class Fused(NamedTuple):
    """What one pass over n packed tokens yields: the loss, values of shape (n,), and gradients."""

    total: Tensor
    logprobs: Tensor
    entropy: Tensor
    gradients: Gradients


def chunk_capacity(entries: int) -> int:
    """Return how many tokens' logits may live at a time."""
    return max(1, _CHUNK_BYTES // (4 * entries))


def fused_pass(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    loss: TokenLoss,
    runs: Sequence[slice],
    needs: Needs,
    tile: Tile,
) -> Fused:
    """Return the loss of n packed tokens, hidden (n, H), and the gradients that are needed."""
    given = hidden
    hidden = hidden.to(head.operands)
    sums = GradientSums(head, hidden, needs, revisit=True)
    longest = max((run.stop - run.start for run in runs), default=0)
    chunk = _Chunk(head, longest, tile)
    total = hidden.new_zeros((), dtype=head.dtype)
    softmaxes = []
    for run in runs:
        softmax = chunk.forward(hidden[run], labels[run])
        share, pull = loss.pull(run, softmax.logprobs, softmax.entropy)
        total += share
        softmaxes.append(softmax)
        by_hidden = sums.hidden[run] if needs.hidden else sums.hidden
        chunk.backward(hidden[run], labels[run], softmax, pull, sums, by_hidden)
    nothing = hidden.new_empty(0, dtype=head.dtype)
    return Fused(
        total=total,
        logprobs=torch.cat([nothing, *(s.logprobs for s in softmaxes)]),
        entropy=torch.cat([nothing, *(s.entropy for s in softmaxes)]),
        gradients=sums.finish(sums.hidden, given.dtype),
    )


class _Chunk:
    """Memory for the logits of a chunk of tokens, as one contiguous block a run of entries."""

    def __init__(self, head: Head, tokens: int, tile: Tile) -> None:
        self._head, self._tile = head, tile
        size = tokens * head.weight.shape[0]
        self._logits = torch.empty(size, dtype=head.dtype, device=head.weight.device)
        self._shifted, self._scratch = (buffer_for(head, tokens, tile) for _ in range(2))

    def _block(self, tokens: int, entries: slice) -> Tensor:
        block = self._logits[tokens * entries.start : tokens * entries.stop]
        return block.view(tokens, entries.stop - entries.start)

    def forward(self, hidden: Tensor, labels: Tensor) -> Softmax:
        """Compute the chunk's logits and keep them; return their softmax."""
        running = RunningSoftmax(labels, self._head.dtype)
        for columns in self._head.columns(self._tile.entries):
            block = self._block(labels.shape[0], columns.entries)
            for rows in spans(labels.shape[0], self._tile.tokens):
                shifted, scratch = (
                    cut(buffer, rows, columns) for buffer in (self._shifted, self._scratch)
                )
                self._head.logits_into(block[rows], hidden[rows], columns)
                running.fold(block[rows], self._head, rows, columns, shifted, scratch)
        return running.finish()

    def backward(
        self,
        hidden: Tensor,
        labels: Tensor,
        softmax: Softmax,
        pull: Pull,
        sums: GradientSums,
        by_hidden: Tensor,
    ) -> None:
        """Turn the logits into gradients and add them up; tokens without a pull take no part."""
        size = labels.shape[0]
        moved = marked(pull.moved())
        target = by_hidden
        if moved is not None:
            hidden, labels, pull = hidden[moved], labels[moved], pull.take(moved)
            softmax = Softmax(*(x[moved] for x in softmax))
            target = torch.zeros_like(by_hidden[: labels.shape[0]])
        for columns in self._head.columns(self._tile.entries):
            sums.begin(columns)
            block = self._block(size, columns.entries)
            block = block if moved is None else block[moved]
            for rows in spans(labels.shape[0], self._tile.tokens):
                part, free = block[rows], cut(self._scratch, rows, columns)
                here = Softmax(*(x[rows] for x in softmax))
                gradient = pull.take(rows).gradient(
                    part, self._head, here, labels[rows], columns, free, exact=sums.needs.bias
                )
                sums.add(gradient, hidden[rows], target[rows], columns)
            sums.store(columns)
        if moved is not None and target.numel():
            by_hidden.copy_(spread(target, moved, size))
