"""The core's loss of a batch, computed for slices of its unmasked tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo import LossOptions, LossTerms, batch_totals, g2rpo_loss

from ._tiles import OutputGrads, even_slices


class PackedLoss:
    """The loss of the n unmasked tokens of B responses of T tokens.

    The n tokens are *packed*: consecutive, in the order of the responses.

    Parameters
    ----------
    mask : Tensor (B, T), bool
        Mask of the tokens that count.
    inputs : dict of str to Tensor or None
        Arguments of :func:`g2rpo.g2rpo_loss` of shape (B,) or (B, T), without logprobs, mask and
        entropies.
    options : LossOptions
        Options of the loss.
    rest : dict
        All other arguments. There is an entropy term if entropy bounds are among them.
    """

    def __init__(
        self,
        mask: Tensor,
        inputs: dict[str, Tensor | None],
        options: LossOptions,
        rest: dict[str, Any],
    ) -> None:
        self._mask, self._options, self._rest = mask, options, rest
        self._inputs = {name: x for name, x in inputs.items() if x is not None}
        #: Index of each packed token among the B · T.
        self._places = mask.reshape(-1).nonzero()[:, 0]
        weighs_tasks = rest["task_weights"] is not None or options.resolved().aggregation == "task"
        #: Arguments for slices: their metrics are not used, and those by task would take time.
        self._rest_of_slice = rest if weighs_tasks else rest | {"num_tasks": None}
        #: Terms and metrics of the batch, once a chunk of all tokens has been evaluated.
        self.found: tuple[LossTerms, dict[str, Tensor]] | None = None
        self.has_entropy = rest["entropy_low"] is not None or rest["entropy_high"] is not None

    def packed(self, values: Tensor) -> Tensor:
        """Return the values (B, T, ...) of the packed tokens, (n, ...)."""
        values = values.reshape(self._mask.numel(), *values.shape[2:])
        is_all = self._places.shape[0] == values.shape[0]
        return values if is_all else values.index_select(0, self._places)

    def with_totals(self, entropy: Tensor | None) -> PackedLoss:
        """Return the loss with the totals of this batch, from entropies (n,) if they are needed."""
        counted: dict[str, Any] = {}
        num_tasks = self._rest["num_tasks"]
        if entropy is not None:
            counted["entropies"] = self._unpacked(entropy[None])[0]
            num_tasks = self._rest["entropy_low"].shape[0]
        if num_tasks is not None:
            counted |= {"tasks": self._inputs.get("tasks"), "num_tasks": num_tasks}
        totals = batch_totals(self._mask, **counted)
        rest = self._rest | {"totals": totals}
        return PackedLoss(self._mask, dict(self._inputs), self._options, rest)

    @torch.no_grad()
    def check(self) -> None:
        """Raise the errors of the core for all inputs and options, before any computation."""
        zeros = self._places.new_zeros(self._places.shape, dtype=torch.float32)
        self.whole(zeros, zeros)

    def whole(self, logprobs: Tensor, entropy: Tensor) -> tuple[LossTerms, dict[str, Tensor]]:
        """Return terms and metrics of the batch from values of the packed tokens, (n,) each."""
        values = self._unpacked(torch.stack([logprobs, entropy]))
        return self._loss(values, self._mask, self._inputs, self._rest)

    def _unpacked(self, values: Tensor) -> Tensor:
        full = values.new_zeros(values.shape[0], self._mask.numel())
        return full.index_copy(1, self._places, values).view(-1, *self._mask.shape)

    def chunks(self, capacity: int) -> list[slice] | None:
        """Return the packed tokens in slices of at most ``capacity`` with independent losses.

        None if the loss needs whole responses, and one is longer.
        """
        count = self._places.shape[0]
        if not self._options.needs_whole_responses:
            return list(even_slices(count, capacity))
        chunks, start, stop = [], 0, 0
        for length in self._mask.sum(1).tolist():
            if length > capacity:
                return None
            if stop + length - start > capacity:
                chunks.append(slice(start, stop))
                start = stop
            stop += length
        return [*chunks, slice(start, stop)] if stop > start else chunks

    def output_grads(
        self, chunk: slice, logprobs: Tensor, entropy: Tensor
    ) -> tuple[Tensor, OutputGrads]:
        """Return a chunk's share of the total loss, and its gradients by the tokens' values."""
        values = torch.stack([logprobs, entropy]).detach()
        with torch.enable_grad():
            values.requires_grad_()
            places = self._places[chunk]
            if len(places) == len(self._places):
                full = self._unpacked(values)
                terms, metrics = self._loss(full, self._mask, self._inputs, self._rest)
                self.found = LossTerms(*(term.detach() for term in terms)), _detached(metrics)
            else:
                terms, _ = self._chunk_loss(values, places)
            (gradient,) = torch.autograd.grad(terms.total, values)
        by_entropy = gradient[1] if self.has_entropy else None
        return terms.total.detach(), OutputGrads(gradient[0], by_entropy)

    def _chunk_loss(self, values: Tensor, places: Tensor) -> tuple[LossTerms, dict[str, Tensor]]:
        width = self._mask.shape[1]
        if not self._options.needs_whole_responses:
            # Every token can be a response of one token.
            inputs = {
                name: x[places // width] if x.ndim == 1 else x.reshape(-1)[places, None]
                for name, x in self._inputs.items()
            }
            values = values[:, :, None]
            mask = torch.ones_like(values[0], dtype=torch.bool)
            return self._loss(values, mask, inputs, self._rest_of_slice)
        first, last = (int(places[i]) // width for i in (0, -1))
        responses = slice(first, last + 1)
        mask = self._mask[responses]
        full = values.new_zeros(2, mask.numel()).index_copy(1, places - first * width, values)
        inputs = {name: x[responses] for name, x in self._inputs.items()}
        return self._loss(full.view(2, *mask.shape), mask, inputs, self._rest_of_slice)

    def _loss(
        self, values: Tensor, mask: Tensor, inputs: dict[str, Tensor], rest: dict[str, Any]
    ) -> tuple[LossTerms, dict[str, Tensor]]:
        """Call the core with log-probabilities and entropies as ``values`` (2, B, T)."""
        given: dict[str, Any] = dict(inputs)
        old, advantages = given.pop("old_logprobs"), given.pop("advantages")
        if self.has_entropy:
            given["entropies"] = values[1]
        return g2rpo_loss(values[0], old, advantages, mask, options=self._options, **given, **rest)


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}
