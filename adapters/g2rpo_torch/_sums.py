"""Gradients of a head, summed over tiles in full precision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._tiles import Columns, Head, multiply


class Needs(NamedTuple):
    """Which gradients are needed."""

    hidden: bool
    weight: bool
    low_rank: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients by what makes the logits; those that are not needed are empty."""

    hidden: Tensor
    weight: Tensor
    low_rank: Tensor
    bias: Tensor


class GradientSums:
    """Sums of the gradients by N hidden states and by the weights and the bias of a head.

    Shares of one run of vocabulary entries are added between ``begin`` and ``store``.

    Parameters
    ----------
    head : Head
        Of V entries.
    hidden : Tensor (N, H)
        In the dtype that products take.
    needs : Needs
        What is needed.
    revisit : bool
        A run of entries may begin again and add to what is there.

    Attributes
    ----------
    needs : Needs
        What is needed.
    hidden : Tensor (N, H)
        In full precision; empty unless needed.
    """

    def __init__(self, head: Head, hidden: Tensor, needs: Needs, *, revisit: bool = False) -> None:
        self._head, self.needs = head, needs
        # One each: what an operator returns must not be the same tensor twice.
        self.hidden, self._bias, *nothing = (
            hidden.new_empty(0, dtype=head.dtype) for _ in range(4)
        )
        if needs.hidden:
            self.hidden = torch.zeros_like(hidden, dtype=head.dtype)
        if needs.bias:
            self._bias = hidden.new_zeros(head.weight.shape[:1], dtype=head.dtype)
        self._sums: list[_WeightSum | None] = [None, None]
        self._nothing = nothing
        width = head.weight.shape[1]
        if needs.weight:
            self._sums[0] = _WeightSum(head.weight, slice(0, width), head.dtype, revisit)
        if needs.low_rank and head.low_rank is not None:
            self._sums[1] = _WeightSum(head.low_rank, slice(width, None), head.dtype, revisit)

    def begin(self, columns: Columns) -> None:
        """Start a run of entries."""
        for each in self._sums:
            if each is not None:
                each.begin(columns)

    def add(self, gradient: Tensor, hidden: Tensor, by_hidden: Tensor, columns: Columns) -> None:
        """Add the shares of a tile, given the gradient by its products.

        ``by_hidden`` is where the share of the tile's tokens goes: rows of ``self.hidden``.
        """
        if self.needs.bias:
            self._bias[columns.entries] += gradient.sum(0)
        gradient = gradient.to(self._head.operands)
        if self.needs.hidden:
            multiply(by_hidden, gradient, columns.weight, beta=1.0)
        for each in self._sums:
            if each is not None:
                each.add(gradient, hidden)

    def store(self, columns: Columns) -> None:
        """End the run of entries."""
        for each in self._sums:
            if each is not None:
                each.store(columns)

    def finish(self, by_hidden: Tensor, dtype: torch.dtype) -> Gradients:
        """Return all gradients in their dtypes: ``by_hidden`` in the given one."""
        weight, low_rank = (
            empty if each is None else each.total.to(each.dtype)
            for empty, each in zip(self._nothing, self._sums, strict=True)
        )
        bias = self._bias if self._head.bias is None else self._bias.to(self._head.bias.dtype)
        return Gradients(by_hidden.to(dtype), weight, low_rank, bias)


class _WeightSum:
    """The gradient by one weight (V, K), that K columns of the hidden states are multiplied with.

    Once a run of entries is stored its gradient is rounded if the weight is of half precision;
    where runs may begin again, the whole of it stays in full precision to the end.
    """

    def __init__(self, weight: Tensor, columns: slice, dtype: torch.dtype, revisit: bool) -> None:
        self.dtype = weight.dtype
        self.total = torch.zeros_like(weight, dtype=dtype) if revisit else torch.empty_like(weight)
        self._columns, self._sum_dtype, self._revisit = columns, dtype, revisit
        self._run = self.total

    def begin(self, columns: Columns) -> None:
        self._run = self.total[columns.entries]
        if self._run.dtype != self._sum_dtype:
            self._run = torch.empty_like(self._run, dtype=self._sum_dtype)
        if not self._revisit:
            self._run.zero_()

    def add(self, gradient: Tensor, hidden: Tensor) -> None:
        multiply(self._run, gradient.t(), hidden[:, self._columns], beta=1.0)

    def store(self, columns: Columns) -> None:
        if self._run.dtype != self.total.dtype:
            self.total[columns.entries] = self._run
