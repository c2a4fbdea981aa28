"""Micro-batches by tokens: every response once, within the budget, always the same loss."""

import copy
import random
from dataclasses import replace

import pytest
import torch

import g2rpo
from g2rpo_trainer.batch import Batch, Lengths, micro_batch_rows, token_bins
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.tasks import TASKS

from .parts import learner_of


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def policy(request, random_policy):
    """One that shares prompts, and one that does not, with a model of its own."""
    model = copy.deepcopy(random_policy.model)
    return replace(random_policy, model=model, shortcuts=Shortcuts(packed_rows=request.param))


@pytest.fixture(scope="module")
def batch(prompts, completions):
    """Four responses of different lengths to each of six prompts."""
    rows = len(completions.tokens)
    mask = torch.arange(12) < torch.tensor([(5 * row) % 12 + 1 for row in range(rows)])[:, None]
    generator = torch.Generator().manual_seed(0)
    advantages, length_advantages = torch.randn(2, rows, generator=generator)
    groups = torch.arange(rows) // 4
    return Batch(
        prompts=prompts,
        groups=groups,
        tokens=completions.tokens,
        mask=mask & completions.mask,
        logprobs=completions.logprobs + 0.05,
        entropies=completions.entropies,
        advantages=advantages,
        length_advantages=length_advantages,
        tasks=groups,
        task_names=list(TASKS),
        ref_logprobs=completions.logprobs - 0.1,
    )


def random_lengths(seed):
    draw = random.Random(seed)
    groups = [group for group in range(9) for _ in range(draw.randint(1, 6))]
    draw.shuffle(groups)
    groups = [sorted(set(groups)).index(group) for group in groups]
    prompts = [draw.randint(1, 300) for _ in range(max(groups) + 1)]
    responses = [draw.choice([0, 1, 7, 40, draw.randint(1, 500)]) for _ in groups]
    return Lengths(prompts, responses, groups, hidden=draw.choice([64, 2048]))


@pytest.mark.parametrize("seed", range(20))
def test_each_response_is_once_in_a_bin_that_fits(seed):
    lengths = random_lengths(seed)
    for budget in (1, 400, 2000, 10**9):
        for packed in (True, False):
            bins = token_bins(lengths, budget, packed=packed)
            assert sorted(number for one in bins for number in one) == list(
                range(len(lengths.responses))
            )
            for one in bins:
                rows, length = lengths.rows_of(one, packed)
                assert rows * length <= budget or len(one) == 1
            # A group is cut only where it does not fit by itself.
            for group in set(lengths.groups):
                own = [n for n, each in enumerate(lengths.groups) if each == group]
                rows, length = lengths.rows_of(own, packed)
                if rows * length <= budget:
                    assert sum(not set(own).isdisjoint(one) for one in bins) == 1
            assert bins == token_bins(lengths, budget, packed=packed)
    assert len(token_bins(lengths, 10**9)) == 1
    assert len(token_bins(lengths, 1)) == len(lengths.responses)


def test_rows_of_like_length_go_together():
    lengths = Lengths([10, 200] * 4, [5] * 16, [n // 2 for n in range(16)], hidden=64)
    assert token_bins(lengths, 860) == [[2, 3, 6, 7, 10, 11, 14, 15], [0, 1, 4, 5, 8, 9, 12, 13]]


@pytest.mark.parametrize("budget", [1, 150, 400, 10**9])
def test_a_pass_computes_what_was_counted(policy, batch, budget, monkeypatch, tiny_run):
    """The model sees no more tokens than the budget allows, and exactly those that were counted."""
    parts = [batch.rows(rows) for rows in micro_batch_rows(policy, batch, budget)]
    seen = []
    plain = policy.model.forward

    def counted(*arguments, **inputs):
        seen.append(inputs["input_ids"].numel())
        return plain(*arguments, **inputs)

    monkeypatch.setattr(policy.model, "forward", counted)
    totals = g2rpo.batch_totals(
        batch.mask, entropies=batch.entropies, tasks=batch.tasks, num_tasks=6
    )
    learner = learner_of(policy, tiny_run())
    for part in parts:
        learner.loss(part, totals)
        lengths = Lengths(
            part.prompts["attention_mask"].sum(-1).tolist(),
            part.mask.sum(-1).tolist(),
            part.groups.tolist(),
            policy.model.config.get_text_config().hidden_size,
        )
        rows, length = lengths.rows_of(range(len(part)), policy.shortcuts.packed_rows)
        assert seen[-1] == rows * length
        assert seen[-1] <= budget or len(part) == 1
    assert len(seen) == len(parts)


def loss_and_gradients(policy, batch, config, budget):
    totals = g2rpo.batch_totals(
        batch.mask, entropies=batch.entropies, tasks=batch.tasks, num_tasks=6
    )
    policy.model.zero_grad()
    sums = torch.zeros(5)
    for rows in micro_batch_rows(policy, batch, budget):
        part = batch.rows(rows)
        terms, _ = learner_of(policy, config).loss(part, totals)
        terms.total.backward()
        sums += torch.stack([term.detach() for term in terms])
    gradients = [w.grad.clone() for w in policy.model.parameters() if w.grad is not None]
    return sums, gradients


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "task"])
def test_the_budget_changes_nothing_but_rounding(policy, batch, tiny_run, aggregation):
    config = tiny_run(
        "optimization.beta=0.1",
        f"optimization.aggregation={aggregation}",
        "rollout.max_completion_length=12",
    )
    whole, expected = loss_and_gradients(policy, batch, config, 10**9)
    assert (whole != 0).all()
    for budget in (1, 150, 400):
        parts, gradients = loss_and_gradients(policy, batch, config, budget)
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
