"""Checks of the inputs of a language model's head, shared by the bindings for PyTorch and JAX.

Dtypes are checked by functions of the framework: unlike `namespace_of`, these compile without a
warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

from g2rpo._typing import Array


def check_head(
    hidden: Array,
    weight: Array,
    bias: Array | None,
    low_rank: tuple[Array, Array] | None,
    *,
    is_floating: Callable[[Array], bool],
) -> None:
    """Raise unless hidden (..., H), weight (V, H), bias (V,) and low_rank (..., R), (V, R) fit."""
    states, rows = tuple(hidden.shape[:-1]), tuple(weight.shape[:1])
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    if low_rank is not None:
        named |= {f"low_rank[{i}]": array for i, array in enumerate(low_rank)}
    for name, array in named.items():
        if array is not None and not is_floating(array):
            raise TypeError(f"{name} must be floating point, got {array.dtype}")
    if hidden.ndim == 0:
        raise ValueError("hidden must have shape (..., H), got ()")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise ValueError(
            f"weight must have shape (V, {hidden.shape[-1]}) with V > 0, got {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != rows:
        raise ValueError(f"bias must have shape ({rows[0]},), got {tuple(bias.shape)}")
    if low_rank is None:
        return
    for i, (array, size) in enumerate(zip(low_rank, (states, rows), strict=True)):
        if tuple(array.shape[:-1]) != size or array.shape[-1] != low_rank[0].shape[-1]:
            wanted = ", ".join(map(str, (*size, "R")))
            raise ValueError(f"low_rank[{i}] must have shape ({wanted}), got {tuple(array.shape)}")


def check_labels(labels: Array, hidden: Array, *, is_integral: Callable[[Array], bool]) -> None:
    """Raise unless there is one integer for each token; their values are not read."""
    if not is_integral(labels):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if tuple(labels.shape) != tuple(hidden.shape[:-1]):
        raise ValueError(
            f"labels must have shape {tuple(hidden.shape[:-1])}, got {tuple(labels.shape)}"
        )


def check_label_values(labels: Array, entries: int) -> None:
    """Raise unless all labels are in the vocabulary; on an accelerator this waits for it."""
    outside = (labels < 0) | (labels >= entries)
    if outside.any():
        raise ValueError(
            f"labels must be in 0 .. {entries - 1} where they count, got {int(labels[outside][0])}"
        )


def check_options(
    temperature: float, softcap: float | None, tile: tuple[int, int] | None = None
) -> None:
    """Raise unless the options are Python numbers and in range."""
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is None and name == "softcap":
            continue
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a Python number, got {type(value).__name__}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    if tile is not None and not (len(tile) == 2 and min(tile) > 0):
        raise ValueError(f"tile must be two positive sizes (tokens, entries), got {tile!r}")
