"""The trainer's log-probabilities with and without logits."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import wraps

import pytest
import torch

import g2rpo
from g2rpo_trainer import shortcuts
from g2rpo_trainer.logprobs import (
    FromHidden,
    FromLogits,
    completion_logprobs,
    completion_predictions,
)
from g2rpo_trainer.model.policy_model import Shortcuts

from .shared_prompt_models import own_lines


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def policy(request, random_policy):
    """One that shares prompts, and one that does not, with a model of its own."""
    model = copy.deepcopy(random_policy.model)
    return replace(random_policy, model=model, shortcuts=Shortcuts(packed_rows=request.param))


def without_logits(policy):
    return replace(policy, shortcuts=replace(policy.shortcuts, without_logits=True))


def values_and_gradients(policy, prompts, completions):
    groups = torch.arange(len(prompts["input_ids"])).repeat_interleave(4)
    mask = completions.mask
    values = completion_logprobs(policy, prompts, groups, completions.tokens, mask, temperature=0.9)
    values = [x[mask] for x in values]
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    loss = values[0].sum() + 0.3 * values[1].sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [*values, *(g for g in gradients if g is not None)]


def test_values_and_gradients_are_the_same(policy, prompts, completions, monkeypatch):
    expected = values_and_gradients(policy, prompts, completions)
    # The model's own logits are not computed.
    monkeypatch.setattr(policy.model, "forward", refused(policy.model.forward))
    got = values_and_gradients(without_logits(policy), prompts, completions)
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


def test_the_loss_and_its_gradients_are_the_same(policy, prompts, completions):
    kind, expected_values, expected_gradients = loss_and_gradients(policy, prompts, completions)
    assert kind is FromLogits
    policy = without_logits(policy)
    kind, values, gradients = loss_and_gradients(policy, prompts, completions)
    assert kind is FromHidden
    assert all(float(value.detach()) != 0 for value in values[:5])
    for ours, theirs in zip(values, expected_values, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, check_dtype=False)
    assert len(gradients) == len(expected_gradients)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def refused(function):
    @wraps(function)
    def refuse(*_, **__):
        raise AssertionError("called")

    return refuse


class Scaled(torch.nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def scaled_head(linear):
    layer = Scaled(linear.in_features, linear.out_features, bias=False)
    layer.weight = linear.weight
    return layer


def test_a_head_of_another_kind_keeps_its_logits(policy, monkeypatch, caplog):
    monkeypatch.setattr(policy.model, "lm_head", scaled_head(policy.model.lm_head))
    monkeypatch.setattr(shortcuts, "_LARGE_VOCABULARY", 0)
    chosen = shortcuts.choose_shortcuts(policy).shortcuts
    assert not chosen.without_logits
    assert chosen.packed_rows
    (line,) = own_lines(caplog)
    assert "full logits: TypeError: head must be a torch.nn.Linear" in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_more_than_the_head_are_found_out(dtype, policy, monkeypatch, caplog):
    """As in models that scale their logits after a plain linear head."""
    monkeypatch.setattr(shortcuts, "_LARGE_VOCABULARY", 0)
    policy.model.to(dtype)
    assert shortcuts.choose_shortcuts(policy).shortcuts.without_logits
    plain = policy.model.forward

    def scaled(*arguments, **options):
        output = plain(*arguments, **options)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(policy.model, "forward", scaled)
    assert not shortcuts.choose_shortcuts(policy).shortcuts.without_logits
    assert "full logits: log-probabilities differ from the plain pass by" in caplog.text
