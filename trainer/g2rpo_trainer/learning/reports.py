"""What the slices of a mini-batch report, added up on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import g2rpo


class Reports:
    """The loss terms and other metrics of some of a mini-batch's slices.

    Attributes
    ----------
    values : dict of str to array
        Float64; loss terms under ``loss/<term>``, the rest under the names of
        :func:`g2rpo.g2rpo_loss`. Those of all slices, of whichever processes, make the mini-batch's
        own: by the largest where the name ends in ``/max``, else by the sum.
    """

    def __init__(self) -> None:
        self.values: dict[str, npt.NDArray[np.float64]] = {}

    def add(
        self, terms: g2rpo.LossTerms, metrics: dict[str, torch.Tensor], share: torch.Tensor
    ) -> None:
        """Add a slice, which has a share of the mini-batch's tokens.

        Parameters
        ----------
        terms : LossTerms
            Of the slice, given the totals of the mini-batch.
        metrics : dict of str to Tensor
            With them; scalars and those by task.
        share : Tensor
            From 0 to 1, a scalar.
        """
        found = {f"loss/{name}": term.detach() for name, term in terms._asdict().items()}
        for name, metric in metrics.items():
            # Means over the slice's tokens become its share; those of tasks are shares already.
            is_mean = not name.endswith("/max") and not name.startswith("tasks/")
            found[name] = share * metric if is_mean else metric
        for name, value in _on_host(found).items():
            if name in self.values:
                join = np.maximum if name.endswith("/max") else np.add
                value = join(self.values[name], value)
            self.values[name] = value

    def to_json(self) -> dict[str, Any]:
        """Return numbers and lists of numbers by name."""
        return {name: value.tolist() for name, value in self.values.items()}


def _on_host(tensors: dict[str, torch.Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    # The device is asked once, not for every number.
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()]).cpu().double().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors.values()])
    pieces = np.split(flat, ends[:-1])
    return {
        name: piece.reshape(tuple(tensor.shape))
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }
