"""The tensors of a model's head, from its module."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class LinearHead(NamedTuple):
    """Arguments of :func:`g2rpo_torch.logprobs_and_entropy` for a head.

    Attributes
    ----------
    weight : Tensor (V, H)
        Weight of the linear layer.
    bias : Tensor (V,) or None
        Bias of the linear layer.
    low_rank : tuple of Tensor or None
        An adapter's hidden states (..., R), scaled, and its weight (V, R).
    """

    weight: Tensor
    bias: Tensor | None
    low_rank: tuple[Tensor, Tensor] | None


def linear_head(module: torch.nn.Module, hidden: Tensor, /) -> LinearHead:
    """Return the tensors of a linear layer, with its LoRA adapters if it has any.

    Parameters
    ----------
    module : torch.nn.Module
        A ``torch.nn.Linear``, or one with PEFT's LoRA adapters.
    hidden : Tensor
        Input of the module, shape (..., H): the first factor of the adapters is applied to it.

    Returns
    -------
    LinearHead
        Its weight and adapters are differentiable as far as they require a gradient.

    Raises
    ------
    TypeError
        If the module is anything else: another layer, a quantised weight, DoRA.

    Notes
    -----
    Hooks of the module do not run.

    Examples
    --------
    >>> import torch
    >>> head = linear_head(torch.nn.Linear(4, 9), torch.zeros(2, 4))
    >>> head.weight.shape, head.bias.shape, head.low_rank
    (torch.Size([9, 4]), torch.Size([9]), None)
    """
    base: Any = getattr(module, "base_layer", module)
    is_linear = isinstance(base, torch.nn.Linear) and type(base).forward is torch.nn.Linear.forward
    if not (is_linear and base.weight.is_floating_point()):
        raise TypeError(
            "head must be a torch.nn.Linear of floating-point weight, or one with LoRA adapters, "
            f"got {type(module).__name__}"
        )
    return LinearHead(base.weight, base.bias, None if base is module else _lora(module, hidden))


def _lora(module: Any, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the hidden states and weights of the active adapters of a PEFT layer."""
    if not hasattr(module, "lora_A"):
        raise TypeError(f"head must have no adapters but LoRA's, got {type(module).__name__}")
    if module.merged or module.disable_adapters:
        return None
    states, weights = [], []
    for name in (name for name in module.active_adapters if name in module.lora_A):
        variant = getattr(module, "lora_variant", {}).get(name)
        if variant is not None or module.lora_B[name].bias is not None:
            raise TypeError(f"head must have plain LoRA adapters, {name!r} is of another kind")
        down = module.lora_A[name]
        state = down(module.lora_dropout[name](hidden.to(down.weight.dtype)))
        states.append(state * module.scaling[name])
        weights.append(module.lora_B[name].weight)
    return (torch.cat(states, dim=-1), torch.cat(weights, dim=1)) if states else None
