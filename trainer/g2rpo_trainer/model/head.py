"""Logits in float32 of a model in 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import linear


@contextmanager
def float32_logits(model: Any) -> Iterator[None]:
    """Let a model in 16 bits return float32 logits inside the context.

    Rounded to bfloat16, a logit of 20 is wrong by up to 0.06, and so is the log-probability of its
    token. The update computes float32 logits from the same hidden states, and the ratio of the two
    would differ from 1 by as much. Only a linear output layer is changed.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its output layer may have an adapter.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> head = torch.nn.Linear(2, 3).bfloat16()
    >>> states = torch.ones(1, 2, dtype=torch.bfloat16)
    >>> with float32_logits(SimpleNamespace(get_output_embeddings=lambda: head)):
    ...     head(states).dtype
    torch.float32
    >>> head(states).dtype
    torch.bfloat16
    """
    head = model.get_output_embeddings()
    # Under an adapter lies the layer itself.
    head = getattr(head, "base_layer", head)
    if type(head) is not torch.nn.Linear or torch.finfo(head.weight.dtype).bits >= 32:
        yield
        return
    head.forward = MethodType(_float32_linear, head)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward


def _float32_linear(head: torch.nn.Linear, states: torch.Tensor) -> torch.Tensor:
    if states.device.type == "cuda" and not torch.is_grad_enabled():
        # Without a float32 copy of the weight; this product has no derivative.
        rows = states.flatten(0, -2)
        products = torch.mm(rows, head.weight.t(), out_dtype=torch.float32)
        logits = products.unflatten(0, states.shape[:-1])
        return logits if head.bias is None else logits + head.bias.float()
    bias = None if head.bias is None else head.bias.float()
    return linear(states.float(), head.weight.float(), bias)
