"""The tensors of a head, from its module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from g2rpo_torch import linear_head, logprobs_and_entropy

from .conftest import plain


class Adapted(nn.Module):
    """A linear layer with LoRA adapters, in the terms of PEFT."""

    def __init__(self, base: nn.Linear, ranks: dict[str, int]) -> None:
        super().__init__()
        size = base.out_features, base.in_features
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict(
            {k: nn.Linear(size[1], r, bias=False) for k, r in ranks.items()}
        )
        self.lora_B = nn.ModuleDict(
            {k: nn.Linear(r, size[0], bias=False) for k, r in ranks.items()}
        )
        self.lora_dropout = nn.ModuleDict({name: nn.Identity() for name in ranks})
        self.scaling = {name: 0.5 * rank for name, rank in ranks.items()}
        self.active_adapters = list(ranks)
        self.merged = self.disable_adapters = False
        self.lora_variant: dict[str, object] = {}

    def forward(self, hidden):
        out = self.base_layer(hidden)
        if not self.disable_adapters:
            for name in self.active_adapters:
                adapter = self.lora_B[name](self.lora_A[name](hidden))
                out = out + self.scaling[name] * adapter
        return out


@pytest.fixture
def hidden():
    torch.manual_seed(0)
    return torch.randn(4, 6, requires_grad=True)


def compare(module, hidden):
    labels = torch.tensor([3, 0, 8, 10])
    leaves = [hidden, *(p for p in module.parameters() if p.requires_grad)]
    head = linear_head(module, hidden)
    ours = logprobs_and_entropy(hidden, head.weight, labels, bias=head.bias, low_rank=head.low_rank)
    # Logits times an identity are logits.
    theirs = plain(module(hidden), torch.eye(11), labels)
    gradients = []
    for values in (ours, theirs):
        loss = (values[0] + 2 * values[1]).sum()
        gradients.append([loss, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_tensors_of_a_linear_layer_give_its_logits(hidden, bias):
    compare(nn.Linear(6, 11, bias=bias), hidden)


@pytest.mark.parametrize("ranks", [{"default": 2}, {"a": 1, "b": 3}])
def test_tensors_of_adapters_give_the_logits_of_the_module(hidden, ranks):
    compare(Adapted(nn.Linear(6, 11), ranks), hidden)


def test_disabled_and_merged_adapters_add_nothing(hidden):
    module = Adapted(nn.Linear(6, 11), {"default": 2})
    module.merged = True
    assert linear_head(module, hidden).low_rank is None
    module.merged, module.disable_adapters = False, True
    assert linear_head(module, hidden).low_rank is None
    module.disable_adapters, module.active_adapters = False, []
    assert linear_head(module, hidden).low_rank is None


class Scaled(nn.Linear):
    def forward(self, hidden):
        return 0.5 * super().forward(hidden)


class Wrapped(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base_layer = base


def dora():
    module = Adapted(nn.Linear(6, 11), {"default": 2})
    module.lora_variant["default"] = object()
    return module


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(6, 11)), "head must be a torch.nn.Linear .*got Sequential"),
        (Scaled(6, 11), "got Scaled"),
        (Wrapped(nn.Linear(6, 11)), "no adapters but LoRA's, got Wrapped"),
        (dora(), "'default' is of another kind"),
    ],
)
def test_other_heads_are_refused(hidden, module, message):
    with pytest.raises(TypeError, match=message):
        linear_head(module, hidden)
