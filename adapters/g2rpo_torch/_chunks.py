"""A loss and its gradients in one pass: the logits of a chunk are kept until both are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._gradients import Gradients, GradientSums, Needs
from ._packed_loss import PackedLoss
from ._softmax import scatter_rows, selected_rows, tile_buffer, tile_view
from ._tiles import Head, OutputGrads, RunningSoftmax, Softmax, Tile, even_slices

# Memory of a chunk's logits. With a vocabulary of 151,936 a chunk has 441 tokens on a CPU, and
# 2,208 on a GPU, whose tiles have 2,048 rows.
_CHUNK_BYTES = {"cpu": 1 << 28, "cuda": 5 << 28}


class FusedResult(NamedTuple):
    """Total loss, log-probabilities and entropies (n,) of the packed tokens, and gradients."""

    total: Tensor
    logprobs: Tensor
    entropy: Tensor
    gradients: Gradients


def chunk_capacity(entries: int, device: torch.device) -> int:
    """Return the number of tokens of a chunk on a device."""
    return max(1, _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"]) // (4 * entries))


def fused_pass(
    head: Head,
    hidden: Tensor,
    labels: Tensor,
    loss: PackedLoss,
    chunks: Sequence[slice],
    needs: Needs,
    tile: Tile,
) -> FusedResult:
    """Return the loss of n packed tokens, hidden (n, H), and the gradients that are needed."""
    dtype = hidden.dtype
    hidden = hidden.to(head.operands)
    sums = GradientSums(head, hidden, needs, accumulate=True)
    longest = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    memory = _ChunkLogits(head, longest, tile)
    total = hidden.new_zeros((), dtype=head.sum_dtype)
    softmaxes = []
    for chunk in chunks:
        softmax = memory.forward(hidden[chunk], labels[chunk])
        share, grads = loss.output_grads(chunk, softmax.logprobs, softmax.entropy)
        total += share
        softmaxes.append(softmax)
        by_hidden = sums.hidden[chunk] if needs.hidden else sums.hidden
        memory.backward(hidden[chunk], labels[chunk], softmax, grads, sums, by_hidden)
    nothing = hidden.new_empty(0, dtype=head.sum_dtype)
    return FusedResult(
        total=total,
        logprobs=torch.cat([nothing, *(s.logprobs for s in softmaxes)]),
        entropy=torch.cat([nothing, *(s.entropy for s in softmaxes)]),
        gradients=sums.result(sums.hidden, dtype),
    )


class _ChunkLogits:
    """Memory for the logits of a chunk of tokens: one contiguous block per vocabulary slice."""

    def __init__(self, head: Head, tokens: int, tile: Tile) -> None:
        self._head, self._tile = head, tile
        size = tokens * head.weight.shape[0]
        self._logits = torch.empty(size, dtype=head.sum_dtype, device=head.weight.device)
        self._shifted, self._scratch = (tile_buffer(head, tokens, tile) for _ in range(2))

    def _block(self, tokens: int, entries: slice) -> Tensor:
        block = self._logits[tokens * entries.start : tokens * entries.stop]
        return block.view(tokens, entries.stop - entries.start)

    def forward(self, hidden: Tensor, labels: Tensor) -> Softmax:
        """Compute and keep the chunk's logits; return their softmax."""
        running = RunningSoftmax(labels, self._head.sum_dtype)
        for vocab in self._head.vocab_slices(self._tile.entries):
            block = self._block(labels.shape[0], vocab.entries)
            for rows in even_slices(labels.shape[0], self._tile.tokens):
                shifted, scratch = (
                    tile_view(buffer, rows, vocab) for buffer in (self._shifted, self._scratch)
                )
                self._head.logits_into(block[rows], hidden[rows], vocab)
                running.update(block[rows], self._head, rows, vocab, shifted, scratch)
        return running.result()

    def backward(
        self,
        hidden: Tensor,
        labels: Tensor,
        softmax: Softmax,
        grads: OutputGrads,
        sums: GradientSums,
        by_hidden: Tensor,
    ) -> None:
        """Overwrite the logits with gradients and add these up; skip tokens without a gradient."""
        size = labels.shape[0]
        active = selected_rows(grads.has_grad())
        target = by_hidden
        if active is not None:
            hidden, labels, grads = hidden[active], labels[active], grads.take(active)
            softmax = Softmax(*(x[active] for x in softmax))
            target = torch.zeros_like(by_hidden[: labels.shape[0]])
        for vocab in self._head.vocab_slices(self._tile.entries):
            sums.begin(vocab)
            block = self._block(size, vocab.entries)
            block = block if active is None else block[active]
            for rows in even_slices(labels.shape[0], self._tile.tokens):
                gradient = grads.take(rows).logit_gradient(
                    block[rows],
                    self._head,
                    Softmax(*(x[rows] for x in softmax)),
                    labels[rows],
                    vocab,
                    tile_view(self._scratch, rows, vocab),
                    exact=sums.needs.bias,
                )
                sums.add(gradient, hidden[rows], target[rows], vocab)
            sums.store(vocab)
        if active is not None and target.numel():
            by_hidden.copy_(scatter_rows(target, active, size))
