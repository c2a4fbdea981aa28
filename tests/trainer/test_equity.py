"""The gradient of each task by itself."""

from dataclasses import replace

import pytest
import torch

import g2rpo
from g2rpo_trainer.batch import Batch
from g2rpo_trainer.config import load_config
from g2rpo_trainer.equity import gradient_norms
from g2rpo_trainer.metrics import equity_metrics

from .parts import learner_of

TASKS = ("grounding", "vqa", "spatial", "chart", "ocr", "maths")


def norms_of(policy, batch, config, step):
    learner = learner_of(policy, config, tasks=TASKS)
    return gradient_norms(learner, batch, config.output, step)


def gradient_equity(policy, batch, config, step):
    """Return what is logged of the norms that are measured in a step."""
    norms = norms_of(policy, batch, config, step).norms
    return equity_metrics(norms) if norms else {}


def describe(*settings: str):
    return load_config(
        settings=["output.equity_steps=2", "output.equity_prompts=1", "entropy.weight=0", *settings]
    )


@pytest.fixture
def batch(prompts, completions):
    """Four responses to one prompt of every task, with advantages at random."""
    groups = torch.arange(len(TASKS)).repeat_interleave(4)
    generator = torch.Generator().manual_seed(0)
    return Batch(
        prompts=prompts,
        groups=groups,
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        advantages=torch.randn(len(groups), generator=generator),
        length_advantages=torch.randn(len(groups), generator=generator),
        tasks=groups.clone(),
        task_names=list(TASKS),
    )


@pytest.fixture
def weights(random_policy):
    weights = list(random_policy.model.parameters())
    yield weights
    for weight in weights:
        weight.grad = None


def gradient(policy, batch, config, weights) -> torch.Tensor:
    """Return the gradient of a whole batch, as one vector."""
    totals = g2rpo.batch_totals(
        batch.mask, entropies=batch.entropies, tasks=batch.tasks, num_tasks=len(TASKS)
    )
    terms, _ = learner_of(policy, config, tasks=TASKS).loss(batch, totals)
    parts = torch.autograd.grad(terms.total, weights, allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def only(batch: Batch, task: int) -> Batch:
    """Return the batch with advantages for one task alone: all others pull at nothing."""
    mine = (batch.tasks == task).float()
    return replace(
        batch,
        advantages=batch.advantages * mine,
        length_advantages=batch.length_advantages * mine,
    )


def test_norms_are_those_of_the_tasks_own_gradients(random_policy, batch, weights):
    config = describe()
    measured = gradient_equity(random_policy, batch, config, 2)
    own = [
        gradient(random_policy, only(batch, task), config, weights) for task in range(len(TASKS))
    ]
    norms = [float(one.norm()) for one in own]
    for task, norm in zip(TASKS, norms, strict=True):
        assert measured[f"equity/grad_norm/{task}"] == pytest.approx(norm, rel=1e-4)
    assert measured["equity/ratio"] == pytest.approx(max(norms) / min(norms), rel=1e-4)
    # They are parts of one update, not the gradients of six updates.
    whole = gradient(random_policy, batch, config, weights)
    torch.testing.assert_close(sum(own), whole, rtol=1e-3, atol=1e-6)


def test_the_entropy_term_is_part_of_it(random_policy, batch):
    bounds = ["entropy.low=0", "entropy.high=100", "entropy.bounds={ocr: [90, 100]}"]
    without, pulled = (
        gradient_equity(random_policy, batch, describe(*bounds, f"entropy.weight={weight}"), 2)
        for weight in (0, 1)
    )
    key = "equity/grad_norm/ocr"
    assert abs(pulled[key] - without[key]) > 0.01 * without[key]
    for task in set(TASKS) - {"ocr"}:
        key = f"equity/grad_norm/{task}"
        assert pulled[key] == pytest.approx(without[key], rel=1e-4)


def test_micro_batches_change_it_by_rounding_only(random_policy, batch):
    whole, parts = (
        gradient_equity(
            random_policy, batch, describe(f"optimization.micro_batch_tokens={size}"), 2
        )
        for size in (100_000, 1)
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_nothing_is_touched(random_policy, batch, weights):
    before = [weight.detach().clone() for weight in weights]
    mark = torch.ones_like(weights[0])
    weights[0].grad = mark
    random_state = torch.get_rng_state()
    gradient_equity(random_policy, batch, describe(), 4)
    assert weights[0].grad is mark
    assert (mark == 1).all()
    assert all(weight.grad is None for weight in weights[1:])
    assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_all_tasks_count_with_the_same_number_of_prompts(random_policy, batch):
    # Four prompts are now of task 0, and two of task 1: two of each count.
    uneven = replace(batch, tasks=(batch.groups >= 4).long())
    rows = torch.tensor([0, 1, 4, 5]).repeat_interleave(4) * 4 + torch.arange(4).repeat(4)
    chosen = uneven.rows(rows)
    config = describe("output.equity_prompts=3")
    measured = gradient_equity(random_policy, uneven, config, 2)
    assert measured == pytest.approx(gradient_equity(random_policy, chosen, config, 2))
    assert set(measured) == {"equity/grad_norm/grounding", "equity/grad_norm/vqa", "equity/ratio"}


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [2, 4]), (3, [3])])
def test_it_is_measured_every_so_many_steps(random_policy, batch, every, steps):
    config = describe(f"output.equity_steps={every}")
    assert [s for s in range(1, 5) if gradient_equity(random_policy, batch, config, s)] == steps


@pytest.mark.parametrize(("every", "adapt", "steps"), [(0, 2, [2, 4]), (3, 2, [2, 3, 4])])
def test_task_weights_have_it_measured_too(random_policy, batch, every, adapt, steps):
    config = describe(f"output.equity_steps={every}", f"task_weights.adapt={adapt}")
    assert [s for s in range(1, 5) if norms_of(random_policy, batch, config, s).norms] == steps


def test_a_gradient_of_entropy_alone_is_no_signal(random_policy, batch):
    dull = batch.tasks == TASKS.index("ocr")
    still = replace(
        batch,
        advantages=batch.advantages.masked_fill(dull, 0.0),
        length_advantages=batch.length_advantages.masked_fill(dull, 0.0),
    )
    config = describe("entropy.low=90", "entropy.high=100", "entropy.weight=1")
    norms, with_signal = norms_of(random_policy, still, config, 2)
    assert norms["ocr"] > 0
    assert set(norms) - set(with_signal) == {"ocr"}
