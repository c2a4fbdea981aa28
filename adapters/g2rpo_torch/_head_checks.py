"""What a head's inputs must be, and how they are made ready."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def ready_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return checked hidden states, weight, low-rank weight and bias: gathered if sharded.

    With a low-rank weight (V, R) the hidden states have its R columns beside their own.
    """
    check_head(hidden, weight, bias)
    adapter = None
    if low_rank is not None:
        check_low_rank(low_rank, hidden, weight)
        hidden, adapter = torch.cat([hidden, low_rank[0]], dim=-1), gathered(low_rank[1])
    return hidden, gathered(weight), adapter, None if bias is None else gathered(bias)


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless hidden (..., H), weight (V, H) and bias (V,) fit one another."""
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        check_device(name, tensor, hidden)
    if hidden.ndim == 0:
        raise ValueError("hidden must have shape (..., H), got ()")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] == 0:
        raise ValueError(
            f"weight must have shape (V, {hidden.shape[-1]}) with V > 0, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def check_low_rank(low_rank: tuple[Tensor, Tensor], hidden: Tensor, weight: Tensor) -> None:
    """Raise unless these are states (..., R) and a weight (V, R)."""
    if len(low_rank) != 2:
        raise ValueError(f"low_rank must be two tensors, got {len(low_rank)}")
    for i, size in enumerate((hidden.shape[:-1], weight.shape[:1])):
        name, tensor = f"low_rank[{i}]", low_rank[i]
        check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        check_device(name, tensor, hidden)
        if tensor.shape[:-1] != size or tensor.shape[-1] != low_rank[0].shape[-1]:
            wanted = ", ".join(map(str, (*size, "R")))
            raise ValueError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")


def check_labels(labels: Tensor, hidden: Tensor) -> None:
    """Raise unless there is one integer for each token; their values are not looked at."""
    check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    check_device("labels", labels, hidden)
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels must have shape {tuple(hidden.shape[:-1])}, got {tuple(labels.shape)}"
        )


def check_label_values(labels: Tensor, entries: int) -> None:
    """Raise unless all labels are in the vocabulary; on an accelerator this waits for it."""
    outside = (labels < 0) | (labels >= entries)
    if outside.any():
        raise ValueError(
            f"labels must be in 0 .. {entries - 1} where they count, "
            f"got {labels[outside][0].item()}"
        )


def check_options(temperature: float, softcap: float | None) -> None:
    """Raise unless both are positive and finite."""
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_tensor(name: str, value: object) -> None:
    """Raise unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_device(name: str, tensor: Tensor, hidden: Tensor) -> None:
    """Raise unless ``tensor`` is where ``hidden`` is."""
    if tensor.device != hidden.device:
        raise ValueError(f"{name} must be on {hidden.device}, as hidden is, got {tensor.device}")


def gathered(weight: Tensor) -> Tensor:
    """Return a sharded weight as a whole one; its gradient is averaged over the processes."""
    if not hasattr(weight, "full_tensor"):
        return weight
    from torch.distributed.tensor import Partial

    # By default the gradient would be taken to be the same everywhere, and never be reduced.
    sharded: Any = weight
    placements = [Partial("avg")] * sharded.device_mesh.ndim
    return sharded.full_tensor(grad_placements=placements)
