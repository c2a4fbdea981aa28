"""Inputs of a head, and the plain computation by full logits for comparison."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from g2rpo import entropy_from_logits


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Run a test on the CPU, and on a GPU if there is one."""
    return request.param


class Inputs(NamedTuple):
    """Inputs of a head and gradients by its outputs, in float64."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    bias: Tensor
    grads: Tensor

    def leaves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden, weight and bias as leaves that require gradients."""
        of = (self.hidden, self.weight, self.bias)
        return tuple(x.to(dtype, copy=True).requires_grad_() for x in of)


def make_inputs(
    device: str = "cpu", *, tokens: tuple[int, ...] = (3, 5), width: int = 6, entries: int = 37
) -> Inputs:
    generator = torch.Generator().manual_seed(20260408)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device)

    labels = torch.randint(4, 20, tokens, generator=generator).to(device)
    return Inputs(
        normal(*tokens, width),
        2 * normal(entries, width),
        labels,
        normal(entries),
        normal(2, *tokens),
    )


def plain(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies from full logits."""
    logits = hidden @ weight.t()
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits.masked_fill(bias == -torch.inf, -torch.inf)
    logits = logits / temperature
    chosen = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    return chosen, entropy_from_logits(logits)
