"""Updates: mini-batches, what is averaged, and gradients that are not finite."""

import copy
from dataclasses import replace

import pytest
import torch

from g2rpo_trainer.batch import Batch
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.optimizer import make_optimizer, optimizer_tensors
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.tasks import TASKS

from .parts import learner_of


@pytest.fixture
def policy(random_policy):
    return replace(random_policy, model=copy.deepcopy(random_policy.model))


@pytest.fixture(scope="module")
def batch(prompts, completions):
    rows = len(completions.tokens)
    advantages = torch.randn(rows, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(rows) // 4
    columns = completions.tokens, completions.mask, completions.logprobs, completions.entropies
    return Batch(prompts, groups, *columns, advantages, None, tasks=groups, task_names=list(TASKS))


def state_of(policy, optimizer):
    weights = {name: w.detach().clone() for name, w in policy.model.named_parameters()}
    return weights | {f"/{n}": t.clone() for n, t in optimizer_tensors(policy, optimizer).items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_that_is_not_finite_changes_nothing(policy, batch, tiny_run):
    config, progress = tiny_run("optimization.max_skipped_steps=2"), Progress(step=6)
    optimizer = make_optimizer(policy, config.optimization)
    learner = learner_of(policy, config, optimizer)
    learner.update(batch, progress)
    before = state_of(policy, optimizer)
    assert len(before) > len(list(policy.model.parameters()))
    broken = replace(batch, advantages=batch.advantages.index_fill(0, torch.tensor(3), torch.nan))
    for count in (1, 2):
        metrics = learner.update(broken, progress)
        assert equal(state_of(policy, optimizer), before)
        assert all(weight.grad is None for weight in policy.model.parameters())
        assert metrics["optimization/skipped_steps"] == count == progress.skipped_in_a_row
    # One that is finite starts the count anew, but not that of all.
    learner.update(batch, progress)
    assert not equal(state_of(policy, optimizer), before)
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (2, 0)
    after = state_of(policy, optimizer)
    for _ in range(2):
        learner.update(broken, progress)
    with pytest.raises(RunError, match=r"step 7: the gradient is not finite .* 3 times in a row"):
        learner.update(broken, progress)
    assert equal(state_of(policy, optimizer), after)


@pytest.mark.parametrize(("updates", "steps"), [(1, 1), (4, 3), (6, 6)])
def test_updates_take_whole_prompts(policy, batch, tiny_run, monkeypatch, updates, steps):
    """Six prompts in four updates are two in each of three."""
    config = tiny_run(f"optimization.updates_per_batch={updates}")
    optimizer = make_optimizer(policy, config.optimization)
    taken, plain = [], optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: taken.append(plain()))
    metrics = learner_of(policy, config, optimizer).update(batch, Progress())
    assert len(taken) == steps
    # On policy in the first update only.
    assert (metrics["ratio/max"] == pytest.approx(1, abs=1e-4)) == (updates == 1)


def test_metrics_do_not_depend_on_the_budget(policy, batch, tiny_run):
    """Nor does the largest ratio, which is no mean."""
    shifted = replace(batch, logprobs=batch.logprobs + 0.4 * torch.randn(batch.logprobs.shape))
    found = []
    for budget in (10**6, 150):
        one = replace(policy, model=copy.deepcopy(policy.model))
        config = tiny_run(f"optimization.micro_batch_tokens={budget}")
        optimizer = make_optimizer(one, config.optimization)
        found.append(learner_of(one, config, optimizer).update(shifted, Progress()))
    whole, parts = found
    assert whole["ratio/max"] > 1.5
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_metrics_of_each_task_are_those_of_its_own_tokens(policy, batch, tiny_run):
    """Counted on the whole batch by hand; the update takes it in parts of several tasks."""
    generator = torch.Generator().manual_seed(3)
    shape = batch.logprobs.shape
    old, ref = (batch.logprobs + 0.4 * torch.randn(shape, generator=generator) for _ in range(2))
    shifted = replace(batch, logprobs=old, ref_logprobs=ref)
    config = tiny_run(
        "optimization.micro_batch_tokens=250",
        "optimization.beta=0.1",
    )
    names = ["ocr", "maths", "chart"]
    shifted = replace(shifted, tasks=(batch.groups > 3).long(), task_names=names)
    optimizer = make_optimizer(policy, config.optimization)
    learner = learner_of(policy, config, optimizer, tasks=names)
    metrics = learner.update(shifted, Progress())
    for number, task in enumerate(("ocr", "maths")):
        tokens = batch.mask & (shifted.tasks == number)[:, None]
        change, away = (batch.logprobs - old)[tokens], (batch.logprobs - ref)[tokens]
        signs = batch.advantages[:, None].expand(shape)[tokens]
        ratio = change.exp()
        low, high = (ratio < 0.8) & (signs < 0), (ratio > 1.3) & (signs > 0)
        expected = {
            "kl": (ratio * (away.neg().exp() + away - 1)).mean(),
            "kl_old": (ratio - 1 - change).mean(),
            "clip_ratio/low_mean": low.float().mean(),
            "clip_ratio/high_mean": high.float().mean(),
            "clip_ratio/region_mean": (low | high).float().mean(),
            "ratio/mean": ratio.mean(),
            "ratio/max": ratio.max(),
        }
        for name, value in expected.items():
            assert value > 0
            found = metrics[f"{name}/{task}"]
            assert found == pytest.approx(float(value), rel=1e-3, abs=1e-4), (name, task)
    assert metrics["kl/ocr"] != pytest.approx(metrics["kl/maths"], rel=1e-2)
    assert not any(name.endswith("/chart") for name in metrics)


def test_values_in_micro_batches_are_those_of_the_whole(random_policy, batch, tiny_run):
    config = tiny_run("optimization.micro_batch_tokens=100")
    learner = learner_of(random_policy, config, reference=random_policy)
    logprobs, entropies = learner.values(batch)
    torch.testing.assert_close(logprobs, batch.logprobs, rtol=0, atol=2e-5)
    torch.testing.assert_close(entropies, batch.entropies, rtol=0, atol=2e-5)
    referred = learner.with_reference(batch)
    assert torch.equal(referred.ref_logprobs, logprobs)


def test_the_first_parameter_without_a_finite_gradient_is_named(policy, batch, tiny_run):
    """Before clipping, which would make all gradients NaN."""
    config = tiny_run("optimization.max_skipped_steps=0")
    named = dict(policy.model.named_parameters())
    names = [name for name in named if "layers.1" in name and "language_model" in name]
    for name in names[2:4]:
        named[name].register_hook(lambda gradient: gradient * torch.nan)
    optimizer = make_optimizer(policy, config.optimization)
    with pytest.raises(RunError, match=rf"not finite \(nan\), .* first that of {names[2]};"):
        learner_of(policy, config, optimizer).update(batch, Progress())
