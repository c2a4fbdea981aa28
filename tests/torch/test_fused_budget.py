"""Operations and chunks of the fused loss: what a GPU is given to do, counted on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import g2rpo
from g2rpo_torch import fused_g2rpo_loss
from g2rpo_torch._chunks import chunk_capacity
from g2rpo_torch._softmax import choose_tile

B, T, H, V = 8, 64, 16, 500
LARGE = 151_936


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operations(chunks):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator, requires_grad=True) for shape in ((B, T, H), (V, H))
    )
    tasks, mask = torch.arange(B) % 2, torch.ones(B, T, dtype=torch.bool)
    totals = g2rpo.batch_totals(mask, entropies=torch.ones(B, T), tasks=tasks, num_tasks=2)
    with Counted() as counted:
        terms, _ = fused_g2rpo_loss(
            hidden,
            weight,
            torch.randint(V, (B, T), generator=generator),
            torch.full((B, T), -6.0),
            torch.randn(B, generator=generator),
            mask,
            tasks,
            num_tasks=2,
            entropy_low=torch.zeros(2),
            entropy_high=torch.ones(2),
            totals=totals,
            chunk_tokens=B * T // chunks,
        )
        terms.total.backward()
    return counted.calls


def test_a_micro_batch_of_one_chunk_evaluates_the_loss_once():
    one, two, four = (operations(chunks) for chunks in (1, 2, 4))
    assert one < 650
    # Each chunk has its own share of the loss, and several are put together once.
    assert (four - two) / 2 < 450


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 441), ("cuda", 2208)])
def test_a_chunk_fills_the_tiles_of_its_device(device, tokens):
    device = torch.device(device)
    assert chunk_capacity(LARGE, device) == tokens
    if device.type == "cuda":
        assert tokens >= choose_tile(device).tokens
    assert chunk_capacity(10**12, device) == 1
