"""The core's loss of a batch, asked of a few of its tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo import LossOptions, LossTerms, batch_totals, g2rpo_loss

from ._tiles import Pull, spans


class TokenLoss:
    """The loss of B responses of T tokens, n of which the mask marks.

    The n marked tokens are *packed*: numbered in the order of the responses, without gaps.

    Parameters
    ----------
    mask : Tensor (B, T), bool
        Which tokens count.
    inputs : dict of str to Tensor or None
        The arguments of :func:`g2rpo.g2rpo_loss` of shape (B,) or (B, T), without logprobs, mask
        and entropies; None for one that is not given.
    options : LossOptions
        Of the loss.
    rest : dict
        All other arguments. There is an entropy term if bounds are among them.
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
        #: The place of each packed token among the B · T.
        self._places = mask.reshape(-1).nonzero()[:, 0]
        weighs_tasks = rest["task_weights"] is not None or options.resolved().aggregation == "task"
        #: For a run, whose metrics nobody reads: by task they would cost time.
        self._rest_of_run = rest if weighs_tasks else rest | {"num_tasks": None}
        self.has_entropy = rest["entropy_low"] is not None or rest["entropy_high"] is not None

    def packed(self, values: Tensor) -> Tensor:
        """Return the values (B, T, ...) of the marked tokens."""
        values = values.reshape(self._mask.numel(), *values.shape[2:])
        is_all = self._places.shape[0] == values.shape[0]
        return values if is_all else values.index_select(0, self._places)

    def with_totals(self, entropy: Tensor | None) -> TokenLoss:
        """Return the loss with totals counted from this batch, given entropies (n,) if needed."""
        counted: dict[str, Any] = {}
        num_tasks = self._rest["num_tasks"]
        if entropy is not None:
            counted["entropies"] = self._unpacked(entropy[None])[0]
            num_tasks = self._rest["entropy_low"].shape[0]
        if num_tasks is not None:
            counted |= {"tasks": self._inputs.get("tasks"), "num_tasks": num_tasks}
        totals = batch_totals(self._mask, **counted)
        rest = self._rest | {"totals": totals}
        return TokenLoss(self._mask, dict(self._inputs), self._options, rest)

    @torch.no_grad()
    def check(self) -> None:
        """Have the core look at all inputs and options, before anything costs time."""
        nothing = self._places.new_zeros(self._places.shape, dtype=torch.float32)
        self.whole(nothing, nothing)

    def whole(self, logprobs: Tensor, entropy: Tensor) -> tuple[LossTerms, dict[str, Tensor]]:
        """Return terms and metrics of the batch from those of its packed tokens, (n,) each."""
        table = self._unpacked(torch.stack([logprobs, entropy]))
        return self._of(table, self._mask, self._inputs, self._rest)

    def _unpacked(self, values: Tensor) -> Tensor:
        full = values.new_zeros(values.shape[0], self._mask.numel())
        return full.index_copy(1, self._places, values).view(-1, *self._mask.shape)

    def runs(self, capacity: int) -> list[slice] | None:
        """Cut the packed tokens into runs of at most ``capacity`` of which each has its own loss.

        None if a response that has to stay whole is longer.
        """
        count = self._places.shape[0]
        if not self._options.needs_whole_responses:
            return list(spans(count, capacity))
        runs, start, stop = [], 0, 0
        for length in self._mask.sum(1).tolist():
            if length > capacity:
                return None
            if stop + length - start > capacity:
                runs.append(slice(start, stop))
                start = stop
            stop += length
        return [*runs, slice(start, stop)] if stop > start else runs

    def pull(self, run: slice, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Pull]:
        """Return a run's share of the total loss, and its derivatives by each token's values."""
        values = torch.stack([logprobs, entropy]).detach()
        places = self._places[run]
        with torch.enable_grad():
            values.requires_grad_()
            terms, _ = self._of_run(values, places)
            (gradient,) = torch.autograd.grad(terms.total, values)
        return terms.total.detach(), Pull(gradient[0], gradient[1] if self.has_entropy else None)

    def _of_run(self, values: Tensor, places: Tensor) -> tuple[LossTerms, dict[str, Tensor]]:
        width = self._mask.shape[1]
        if not self._options.needs_whole_responses:
            # Every token may stand for itself, as a response of one.
            inputs = {
                name: x[places // width] if x.ndim == 1 else x.reshape(-1)[places, None]
                for name, x in self._inputs.items()
            }
            table = values[:, :, None]
            mask = torch.ones_like(table[0], dtype=torch.bool)
            return self._of(table, mask, inputs, self._rest_of_run)
        first, last = (int(places[i]) // width for i in (0, -1))
        responses = slice(first, last + 1)
        mask = self._mask[responses]
        full = values.new_zeros(2, mask.numel()).index_copy(1, places - first * width, values)
        inputs = {name: x[responses] for name, x in self._inputs.items()}
        return self._of(full.view(2, *mask.shape), mask, inputs, self._rest_of_run)

    def _of(
        self, table: Tensor, mask: Tensor, inputs: dict[str, Tensor], rest: dict[str, Any]
    ) -> tuple[LossTerms, dict[str, Tensor]]:
        given: dict[str, Any] = dict(inputs)
        old, advantages = given.pop("old_logprobs"), given.pop("advantages")
        if self.has_entropy:
            given["entropies"] = table[1]
        return g2rpo_loss(table[0], old, advantages, mask, options=self._options, **given, **rest)
