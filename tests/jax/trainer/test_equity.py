"""The gradient of each task by itself."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g2rpo.run.records import with_tasks
from g2rpo_jax.trainer import train
from g2rpo_jax.trainer.equity import gradient_equity
from g2rpo_jax.trainer.rollout import sample
from g2rpo_jax.trainer.update import Batch, Bounds, Terms, batch_totals, loss_gradient

TASKS = ("arithmetic", "box", "bars", "sorting")


@pytest.fixture
def describe(tiny_run):
    def describe(*settings: str):
        defaults = ["output.equity_steps=2", "output.equity_prompts=1", "entropy.weight=0"]
        return with_tasks(tiny_run(*defaults, *settings))

    return describe


@pytest.fixture(scope="module")
def batch(policy, prompts):
    """Three responses to one prompt of every task, with advantages at random."""
    completions = sample(
        policy,
        prompts,
        jax.random.key(0),
        num_generations=3,
        max_completion_length=6,
        temperature=1.0,
        limits=[6] * len(TASKS),
    )
    shape = completions.ended.shape
    policy_key, length_key = jax.random.split(jax.random.key(1))
    return Batch(
        prompts=prompts,
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        advantages=jax.random.normal(policy_key, shape),
        length_advantages=jax.random.normal(length_key, shape),
        tasks=jnp.broadcast_to(jnp.arange(len(TASKS), dtype=jnp.int32)[:, None], shape),
    )


def gradient(policy, batch, description) -> np.ndarray:
    """Return the gradient of a whole batch, as one vector."""
    found, _ = loss_gradient(
        policy.definition,
        policy.params,
        policy.head_bias,
        batch,
        batch_totals(batch, num_tasks=len(TASKS)),
        Bounds.of(description),
        Terms.of(description),
    )
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(found)])


def only(batch: Batch, task: int) -> Batch:
    """Return the batch with advantages for one task alone: all others pull at nothing."""
    mine = jnp.asarray(batch.tasks == task, jnp.float32)
    return batch._replace(
        advantages=batch.advantages * mine, length_advantages=batch.length_advantages * mine
    )


def test_norms_are_those_of_the_tasks_own_gradients(policy, batch, describe):
    description = describe()
    loss_gradient.clear_cache()
    measured = gradient_equity(policy, batch, description, 2)
    assert loss_gradient._cache_size() == 1  # for all tasks
    own = [gradient(policy, only(batch, task), description) for task in range(len(TASKS))]
    norms = [float(np.linalg.norm(one)) for one in own]
    assert min(norms) > 1e-4
    assert max(norms) / min(norms) > 1.01
    for task, norm in zip(TASKS, norms, strict=True):
        assert measured[f"equity/grad_norm/{task}"] == pytest.approx(norm, rel=1e-4)
    assert measured["equity/ratio"] == pytest.approx(max(norms) / min(norms), rel=1e-4)
    # They are parts of one update, not the gradients of four updates.
    np.testing.assert_allclose(sum(own), gradient(policy, batch, description), rtol=1e-3, atol=1e-6)


def test_the_entropy_term_is_part_of_it(policy, batch, describe):
    bounds = ["entropy.low=0", "entropy.high=100", "entropy.bounds={bars: [90, 100]}"]
    without, pulled = (
        gradient_equity(policy, batch, describe(*bounds, f"entropy.weight={weight}"), 2)
        for weight in (0, 1)
    )
    key = "equity/grad_norm/bars"
    assert abs(pulled[key] - without[key]) > 0.01 * without[key]
    for task in set(TASKS) - {"bars"}:
        key = f"equity/grad_norm/{task}"
        assert pulled[key] == pytest.approx(without[key], rel=1e-4)


def test_all_tasks_count_with_the_same_number_of_prompts(policy, batch, describe):
    # Two more prompts are of the first task, and one more of the second: two of each count.
    rows = [0, 1, 0, 1, 0]
    tasks = jnp.asarray([0, 1, 0, 1, 0], jnp.int32)
    uneven = batch.rows(rows)._replace(tasks=jnp.broadcast_to(tasks[:, None], (5, 3)))
    description = describe("output.equity_prompts=3")
    measured = gradient_equity(policy, uneven, description, 2)
    even = uneven.rows([0, 1, 2, 3])
    assert measured == pytest.approx(gradient_equity(policy, even, description, 2))
    assert set(measured) == {"equity/grad_norm/arithmetic", "equity/grad_norm/box", "equity/ratio"}


def test_micro_batches_change_it_by_rounding_only(policy, batch, describe):
    # Two prompts of each task, which one micro-batch holds, or each its own.
    double = batch.rows([0, 1, 2, 3, 0, 1, 2, 3])
    two = "output.equity_prompts=2"
    whole, parts = (
        gradient_equity(policy, double, describe(two, f"optimization.micro_batch_tokens={size}"), 2)
        for size in (100_000, 1)
    )
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [2, 4]), (3, [3])])
def test_it_is_measured_every_so_many_steps(policy, batch, describe, every, steps):
    description = describe(f"output.equity_steps={every}")
    assert [s for s in range(1, 5) if gradient_equity(policy, batch, description, s)] == steps


def lines(description) -> list[dict]:
    path = Path(description.output.dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_reports_and_draws_it_and_learns_the_same(tiny_run):
    two, every = "optimization.steps=2", "output.equity_steps"
    measured = tiny_run(two, f"{every}=1", "output.plots=true", folder="measured")
    plain = tiny_run(two, f"{every}=0", folder="plain")
    train(measured)
    train(plain)
    names = {"equity/ratio", *(f"equity/grad_norm/{task}" for task in TASKS)}
    with_it, without = lines(measured), lines(plain)
    assert [names <= set(line) for line in with_it] == [True, True]
    for one, other in zip(with_it, without, strict=True):
        left = {k: v for k, v in one.items() if "time" not in k and k not in names}
        assert left == {k: v for k, v in other.items() if "time" not in k}
    assert (Path(measured.output.dir) / "plots" / "equity.png").exists()
