"""The trainer's log-probabilities with and without logits."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch

from g2rpo_torch.trainer import head
from g2rpo_torch.trainer.forward import completion_logprobs
from g2rpo_torch.trainer.sharing import Sharing


@pytest.fixture(params=["auto", "off"])
def policy(request, random_policy):
    """One that shares prompts, and one that does not, with a model of its own."""
    model = copy.deepcopy(random_policy.model)
    return replace(random_policy, model=model, sharing=Sharing(request.param))


def values_and_gradients(policy, prompts, completions):
    groups = torch.arange(len(prompts["input_ids"])).repeat_interleave(4)
    mask = completions.mask
    values = completion_logprobs(policy, prompts, groups, completions.tokens, mask, temperature=0.9)
    values = [x[mask] for x in values]
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    loss = values[0].sum() + 0.3 * values[1].sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [*values, *(g for g in gradients if g is not None)]


def test_values_and_gradients_are_the_same(policy, prompts, completions, monkeypatch, caplog):
    expected = values_and_gradients(policy, prompts, completions)
    assert policy.model not in head._verdicts  # these logits are small
    monkeypatch.setattr(head, "_SMALL_LOGITS", 0)
    monkeypatch.setattr(policy.model, "forward", counted(policy.model.forward))
    got = values_and_gradients(policy, prompts, completions)
    assert head._verdicts[policy.model]
    assert not caplog.records
    # Once to compare; after that the model's own logits are not computed.
    assert policy.model.forward.calls == 1
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def counted(function):
    def wrapper(*arguments, **options):
        wrapper.calls += 1
        return function(*arguments, **options)

    wrapper.calls = 0
    return wrapper


class Scaled(torch.nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def scaled_head(linear):
    layer = Scaled(linear.in_features, linear.out_features, bias=False)
    layer.weight = linear.weight
    return layer


def test_a_head_of_another_kind_keeps_its_logits(policy, prompts, completions, monkeypatch, caplog):
    monkeypatch.setattr(policy.model, "lm_head", scaled_head(policy.model.lm_head))
    expected = values_and_gradients(policy, prompts, completions)
    monkeypatch.setattr(head, "_SMALL_LOGITS", 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = values_and_gradients(policy, prompts, completions)
    (record,) = caplog.records
    assert "full logits: TypeError: head must be a torch.nn.Linear" in record.getMessage()
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_that_are_more_than_the_head_are_found_out(
    policy, prompts, completions, monkeypatch, caplog
):
    """As in models that scale their logits after a plain linear head."""
    plain = policy.model.forward

    def scaled(*arguments, **options):
        output = plain(*arguments, **options)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(policy.model, "forward", scaled)
    monkeypatch.setattr(head, "_SMALL_LOGITS", 0)
    with caplog.at_level(logging.WARNING):
        assert not head.goes_without_logits(policy, prompts, 1)
    assert "differ from the plain pass by" in caplog.text
