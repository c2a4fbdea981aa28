"""The trainer's log-probabilities with and without logits."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch

import g2rpo
from g2rpo_trainer.model.trials import Trials
from g2rpo_trainer.passes import head
from g2rpo_trainer.passes.forward import completion_logprobs, completion_predictions
from g2rpo_trainer.passes.predictions import FromHidden, FromLogits


@pytest.fixture(params=["auto", "off"])
def policy(request, random_policy):
    """One that shares prompts, and one that does not, with a model of its own."""
    model = copy.deepcopy(random_policy.model)
    return replace(random_policy, model=model, trials=Trials(request.param))


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
    assert not head.has_large_vocabulary(policy)
    monkeypatch.setattr(head, "_LARGE_VOCABULARY", 0)
    monkeypatch.setattr(policy.model, "forward", counted(policy.model.forward))
    got = values_and_gradients(policy, prompts, completions)
    assert policy.trials.allows("head", lambda: "asked again")
    assert not caplog.records
    # Once to compare; after that the model's own logits are not computed.
    assert policy.model.forward.calls == 1
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def loss_and_gradients(policy, prompts, completions):
    """Return the type of the predictions, and terms, metrics and gradients of a loss with all."""
    mask = completions.mask
    groups = torch.arange(len(prompts["input_ids"])).repeat_interleave(4)
    predictions = completion_predictions(policy, prompts, groups, completions.tokens, mask)
    generator = torch.Generator().manual_seed(1)
    advantages, length_advantages = torch.randn(2, len(groups), generator=generator)
    tasks = groups % 2
    totals = g2rpo.batch_totals(mask, entropies=completions.entropies, tasks=tasks, num_tasks=2)
    terms, metrics = predictions.loss(
        completions.logprobs + 0.05,
        advantages,
        mask,
        tasks,
        entropy_low=torch.tensor([0.0, 9.0]),
        entropy_high=torch.tensor([0.1, 10.0]),
        length_advantages=length_advantages,
        ref_logprobs=completions.logprobs - 0.1,
        beta=0.1,
        totals=totals,
    )
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(terms.total, parameters, allow_unused=True)
    values = [*terms, *(metrics[name] for name in sorted(metrics))]
    return type(predictions), values, [g for g in gradients if g is not None]


def test_the_loss_and_its_gradients_are_the_same(policy, prompts, completions, monkeypatch):
    kind, expected_values, expected_gradients = loss_and_gradients(policy, prompts, completions)
    assert kind is FromLogits
    monkeypatch.setattr(head, "_LARGE_VOCABULARY", 0)
    kind, values, gradients = loss_and_gradients(policy, prompts, completions)
    assert kind is FromHidden
    assert all(float(value.detach()) != 0 for value in values[:5])
    for ours, theirs in zip(values, expected_values, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, check_dtype=False)
    assert len(gradients) == len(expected_gradients)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


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
    monkeypatch.setattr(head, "_LARGE_VOCABULARY", 0)
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
    monkeypatch.setattr(head, "_LARGE_VOCABULARY", 0)
    with caplog.at_level(logging.WARNING):
        assert not head.goes_without_logits(policy, prompts)
    assert "differ from the plain pass by" in caplog.text
