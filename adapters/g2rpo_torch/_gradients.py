"""Gradients of a head, summed over tiles in float32 (float64)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._tiles import Head, VocabSlice, multiply


class Needs(NamedTuple):
    """Flags of the gradients that are needed."""

    hidden: bool
    weight: bool
    low_rank: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients by hidden states, weights and bias; empty tensors where not needed."""

    hidden: Tensor
    weight: Tensor
    low_rank: Tensor
    bias: Tensor


class GradientSums:
    """Sums of the gradients by N hidden states and by the weights and the bias of a head.

    The tiles of one vocabulary slice are added between ``begin`` and ``store``.

    Parameters
    ----------
    head : Head
        Head with V entries.
    hidden : Tensor (N, H)
        Hidden states in the dtype of the operands of products.
    needs : Needs
        Gradients to sum.
    accumulate : bool
        Whether a vocabulary slice may begin again, and adds to its previous sum.

    Attributes
    ----------
    needs : Needs
        Gradients to sum.
    hidden : Tensor (N, H)
        Sum by hidden states, in ``head.sum_dtype``; empty unless needed.
    """

    def __init__(
        self, head: Head, hidden: Tensor, needs: Needs, *, accumulate: bool = False
    ) -> None:
        self._head, self.needs = head, needs
        # Four different tensors: an operator must not return the same tensor twice.
        self.hidden, self._bias, *self._empty = (
            hidden.new_empty(0, dtype=head.sum_dtype) for _ in range(4)
        )
        if needs.hidden:
            self.hidden = torch.zeros_like(hidden, dtype=head.sum_dtype)
        if needs.bias:
            self._bias = hidden.new_zeros(head.weight.shape[:1], dtype=head.sum_dtype)
        self._sums: list[_WeightSum | None] = [None, None]
        width = head.weight.shape[1]
        if needs.weight:
            self._sums[0] = _WeightSum(head.weight, slice(0, width), head.sum_dtype, accumulate)
        if needs.low_rank and head.low_rank is not None:
            columns = slice(width, None)
            self._sums[1] = _WeightSum(head.low_rank, columns, head.sum_dtype, accumulate)

    def begin(self, vocab: VocabSlice) -> None:
        """Start a vocabulary slice."""
        for each in self._sums:
            if each is not None:
                each.begin(vocab)

    def add(self, gradient: Tensor, hidden: Tensor, by_hidden: Tensor, vocab: VocabSlice) -> None:
        """Add the shares of a tile, given the gradient by its logits before bias and scaling.

        ``by_hidden``, rows of ``self.hidden``, receives the share of the tile's tokens.
        """
        if self.needs.bias:
            self._bias[vocab.entries] += gradient.sum(0)
        gradient = gradient.to(self._head.operands)
        if self.needs.hidden:
            multiply(by_hidden, gradient, vocab.weight, beta=1.0)
        for each in self._sums:
            if each is not None:
                each.add(gradient, hidden)

    def store(self, vocab: VocabSlice) -> None:
        """End the vocabulary slice."""
        for each in self._sums:
            if each is not None:
                each.store(vocab)

    def result(self, by_hidden: Tensor, dtype: torch.dtype) -> Gradients:
        """Return all gradients in the dtypes of their inputs, ``by_hidden`` in the given one."""
        weight, low_rank = (
            empty if each is None else each.total.to(each.dtype)
            for empty, each in zip(self._empty, self._sums, strict=True)
        )
        bias = self._bias if self._head.bias is None else self._bias.to(self._head.bias.dtype)
        return Gradients(by_hidden.to(dtype), weight, low_rank, bias)


class _WeightSum:
    """The gradient by one weight (V, K), the factor of K columns of the hidden states.

    The finished gradient of a vocabulary slice is rounded if the weight is of half precision. With
    ``accumulate`` the whole gradient stays in ``sum_dtype`` to the end.
    """

    def __init__(
        self, weight: Tensor, columns: slice, sum_dtype: torch.dtype, accumulate: bool
    ) -> None:
        self.dtype = weight.dtype
        self.total = (
            torch.zeros_like(weight, dtype=sum_dtype) if accumulate else torch.empty_like(weight)
        )
        self._columns, self._sum_dtype, self._accumulate = columns, sum_dtype, accumulate
        self._slice_sum = self.total

    def begin(self, vocab: VocabSlice) -> None:
        self._slice_sum = self.total[vocab.entries]
        if self._slice_sum.dtype != self._sum_dtype:
            self._slice_sum = torch.empty_like(self._slice_sum, dtype=self._sum_dtype)
        if not self._accumulate:
            self._slice_sum.zero_()

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        multiply(self._slice_sum, gradient.t(), hidden[:, self._columns], beta=1.0)

    def store(self, vocab: VocabSlice) -> None:
        if self._slice_sum.dtype != self.total.dtype:
            self.total[vocab.entries] = self._slice_sum
