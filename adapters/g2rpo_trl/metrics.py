"""Metrics of updates by task, under the names of the reference trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .shaping import Floats


class UpdateMetrics:
    """Adds up what the micro-batches of an optimizer step report, on the device.

    Of names that end in ``/max`` it takes the largest.
    """

    def __init__(self) -> None:
        self._values: dict[str, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take the values of a micro-batch, each its share of the whole."""
        for name, value in values.items():
            value, known = value.detach().reshape(-1), self._values.get(name)
            if known is not None:
                value = torch.maximum(known, value) if name.endswith("/max") else known + value
            self._values[name] = value

    def reduced(self, gather: Callable[[Any], Any]) -> dict[str, Floats]:
        """Return the values over all processes, by task (num_tasks,) or (1,)."""
        lengths = [len(value) for value in self._values.values()]
        row = torch.cat(list(self._values.values())).reshape(1, -1)
        columns = np.split(gather(row).cpu().numpy(), np.cumsum(lengths)[:-1], axis=1)
        return {
            name: column.max(axis=0) if name.endswith("/max") else column.sum(axis=0)
            for name, column in zip(self._values, columns, strict=True)
        }
