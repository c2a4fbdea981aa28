"""Checks of a head's input tensors, and gathering of sharded ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from g2rpo._head_checks import check_head


def prepared_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low_rank: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check and gather the inputs; return hidden states, weight, low-rank weight and bias.

    With a low-rank weight (V, R) the R low-rank states are appended to the hidden states.
    """
    if low_rank is not None and len(low_rank) != 2:
        raise ValueError(f"low_rank must be two tensors, got {len(low_rank)}")
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    named |= {f"low_rank[{i}]": tensor for i, tensor in enumerate(low_rank or ())}
    require_tensors(hidden, **{name: x for name, x in named.items() if x is not None})
    check_head(hidden, weight, bias, low_rank, is_floating=Tensor.is_floating_point)
    adapter = None
    if low_rank is not None:
        hidden, adapter = torch.cat([hidden, low_rank[0]], dim=-1), _gathered(low_rank[1])
    return hidden, _gathered(weight), adapter, None if bias is None else _gathered(bias)


def require_tensors(hidden: Tensor, /, **tensors: object) -> None:
    """Raise unless all are tensors on the device of the hidden states."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.device != hidden.device:
            raise ValueError(
                f"{name} must be on {hidden.device}, as hidden is, got {tensor.device}"
            )


def is_integral(tensor: Tensor) -> bool:
    """Return whether a tensor has an integer dtype."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _gathered(weight: Tensor) -> Tensor:
    """Return a sharded weight as a whole one; its gradient is averaged over the ranks."""
    if not hasattr(weight, "full_tensor"):
        return weight
    from torch.distributed.tensor import Partial

    # The default assumes a gradient that is equal on all ranks, and does not reduce it.
    sharded: Any = weight
    placements = [Partial("avg")] * sharded.device_mesh.ndim
    return sharded.full_tensor(grad_placements=placements)
