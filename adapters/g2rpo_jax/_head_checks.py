"""What a head's inputs must be: all that can be told without waiting for a device."""

from __future__ import annotations

import math
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def check_head(hidden: Array, weight: Array, bias: Array | None) -> None:
    """Raise unless hidden (..., H), weight (V, H) and bias (V,) fit one another."""
    for name, array in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if array is not None:
            _check_floating(name, array)
    if hidden.ndim == 0:
        raise ValueError("hidden must have shape (..., H), got ()")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise ValueError(
            f"weight must have shape (V, {hidden.shape[-1]}) with V > 0, got {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {bias.shape}")


def check_low_rank(low_rank: tuple[Array, Array], hidden: Array, weight: Array) -> None:
    """Raise unless these are states (..., R) and a weight (V, R)."""
    if len(low_rank) != 2:
        raise ValueError(f"low_rank must be two arrays, got {len(low_rank)}")
    for i, size in enumerate((hidden.shape[:-1], weight.shape[:1])):
        name, array = f"low_rank[{i}]", low_rank[i]
        _check_floating(name, array)
        if array.shape[:-1] != size or array.shape[-1] != low_rank[0].shape[-1]:
            wanted = ", ".join(map(str, (*size, "R")))
            raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}")


def check_labels(labels: Array, hidden: Array) -> None:
    """Raise unless there is one integer for each token; their values are not looked at."""
    _check_array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels must have shape {hidden.shape[:-1]}, got {labels.shape}")


def check_label_values(labels: Array, entries: int, ignore_index: int) -> None:
    """Raise unless all labels that count are in the vocabulary, where they can be looked at."""
    if isinstance(labels, jax.core.Tracer) or not labels.is_fully_addressable:
        return
    values = np.asarray(labels)
    outside = (values != ignore_index) & ((values < 0) | (values >= entries))
    if outside.any():
        raise ValueError(
            f"labels must be in 0 .. {entries - 1} where they count, got {values[outside][0]}"
        )


def check_options(temperature: float, softcap: float | None, tile: tuple[int, int] | None) -> None:
    """Raise unless the options are static and in range."""
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is None and name == "softcap":
            continue
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be a Python number, got {type(value).__name__}")
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    if tile is not None and not (len(tile) == 2 and min(tile) > 0):
        raise ValueError(f"tile must be two positive sizes (tokens, entries), got {tile!r}")


def _check_floating(name: str, value: Array) -> None:
    _check_array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {value.dtype}")


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, jax.Array):
        raise TypeError(f"{name} must be a jax.Array, got {type(value).__name__}")
