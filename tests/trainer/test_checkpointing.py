"""Layers that are computed twice in the update: the same gradients from less memory."""

from __future__ import annotations

import pytest
import torch

from g2rpo_trainer.config import Lora, Model
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model import adapting
from g2rpo_trainer.model.loading import load_policy

from .adapters import needs_lora
from .one_update import rollouts
from .tiny_models import FAMILIES

CHECKPOINTED = Model(gradient_checkpointing=True)


def gradients(policy, batch):
    logprobs, entropies = completion_logprobs(
        policy, batch.prompts, batch.groups, batch.tokens, batch.mask
    )
    loss = ((logprobs + 0.3 * entropies) * batch.mask).sum()
    weights = {n: w for n, w in policy.model.named_parameters() if w.requires_grad}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: g for name, g in zip(weights, found, strict=True) if g is not None}


def count_calls(policy, run):
    """Return how often the attention of the first decoder layer is computed."""
    calls = []
    attention = next(m for n, m in policy.model.named_modules() if n.endswith("layers.0.self_attn"))
    hook = attention.register_forward_hook(lambda *_: calls.append(1))
    run()
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same(family, folders):
    plain = load_policy(str(folders(family)), device="cpu")
    twice = load_policy(str(folders(family)), device="cpu", model=CHECKPOINTED)
    batch = rollouts(plain, family)
    expected = gradients(plain, batch)
    gradients(twice, batch)
    found = gradients(twice, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)
    assert count_calls(plain, lambda: gradients(plain, batch)) == 1
    assert count_calls(twice, lambda: gradients(twice, batch)) == 2


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llama"])
def test_sampling_keeps_its_cache(family, folders, caplog):
    plain = load_policy(str(folders(family)), device="cpu")
    twice = load_policy(str(folders(family)), device="cpu", model=CHECKPOINTED)
    expected, found = rollouts(plain, family), rollouts(twice, family)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.logprobs, expected.logprobs)
    assert count_calls(plain, lambda: rollouts(plain, family)) == count_calls(
        twice, lambda: rollouts(twice, family)
    )
    assert not [r for r in caplog.records if "g2rpo" in r.name or "Caching" in r.getMessage()]


def test_dropout_stays_off(folders):
    policy = load_policy(str(folders("llama")), device="cpu")
    layer = policy.model.model.layers[0]
    layer.self_attn.attention_dropout = layer.residual_dropout = 0.5
    adapting.enable_gradient_checkpointing(policy.model)
    assert layer.residual_dropout == 0
    batch = rollouts(policy, "llama")
    one, two = (gradients(policy, batch) for _ in range(2))
    assert all(torch.equal(two[name], gradient) for name, gradient in one.items())


@needs_lora
def test_with_an_adapter(folders):
    options = Model(gradient_checkpointing=True, lora=Lora(rank=2))
    policy = load_policy(str(folders("qwen3")), device="cpu", model=options)
    found = gradients(policy, rollouts(policy, "qwen3"))
    assert found
    assert all("lora_" in name for name in found)
    assert any(gradient.abs().max() > 0 for gradient in found.values())


def test_a_model_that_cannot_says_so(folders, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers.LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(RunError, match="LlamaForCausalLM cannot do it; leave it out"):
        load_policy(str(folders("llama")), device="cpu", model=CHECKPOINTED)
