"""One step: its first ratio is 1, and neither micro-batches nor devices change what it does."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from g2rpo.run.errors import RunError
from g2rpo.run.progress import Progress
from g2rpo.run.records import with_tasks
from g2rpo.run.scorer import Scorer
from g2rpo.run.shaping import Shaping
from g2rpo_jax.trainer import optimizer
from g2rpo_jax.trainer.device import Placement, resolve_device
from g2rpo_jax.trainer.optimizer import AdamW
from g2rpo_jax.trainer.policy_model import load_policy
from g2rpo_jax.trainer.rollout import sample_compiled
from g2rpo_jax.trainer.step import training_step
from g2rpo_jax.trainer.update import Trained, loss_gradient

from ..devices import run

WORKER = Path(__file__).with_name("two_devices.py")


def steps(description, count=1, placement=None):
    """Return the results of some steps from the beginning."""
    description = with_tasks(description)
    placement = placement or resolve_device("cpu")
    policy = load_policy(description.model.name, placement)
    trained = Trained(policy, AdamW.of(description.optimization).start(policy.params))
    shaping, progress, results = Shaping(description), Progress(), []
    with Scorer(description) as scorer:
        for _ in range(count):
            results.append(training_step(trained, shaping, description, progress, scorer))
            trained = results[-1].trained
    return results


def distance(ours, theirs):
    """Return the largest difference between two trees of weights."""
    parts = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ours, theirs)
    return max(jax.tree.leaves(parts))


def test_the_first_ratio_is_one(tiny_run):
    (result,) = steps(tiny_run())
    assert abs(result.metrics["ratio/mean"] - 1) < 2e-5
    assert abs(result.metrics["ratio/max"] - 1) < 2e-5
    assert result.metrics["grad_norm"] > 0


def test_a_second_update_of_the_batch_is_off_policy(tiny_run):
    (result,) = steps(tiny_run("optimization.updates_per_batch=2"))
    one = steps(tiny_run("optimization.updates_per_batch=1"))[0]
    assert distance(result.trained.policy.params, one.trained.policy.params) > 1e-4


def test_micro_batches_change_a_step_by_rounding_only(tiny_run):
    (whole,) = steps(tiny_run())
    (parts,) = steps(tiny_run("optimization.micro_batch_tokens=200"))
    for name in ("loss/total", "loss/policy", "loss/length", "loss/entropy", "grad_norm"):
        assert parts.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-4, abs=1e-6)
    assert parts.metrics["ratio/max"] == pytest.approx(whole.metrics["ratio/max"], abs=1e-5)


def test_micro_batches_report_of_each_task_what_the_whole_does(tiny_run):
    settings = (
        "optimization.updates_per_batch=2",
        "optimization.epsilon=1e-6",
        "optimization.beta=1",
    )
    (whole,) = steps(tiny_run(*settings))
    (parts,) = steps(tiny_run(*settings, "optimization.micro_batch_tokens=70"))
    names = [
        f"{name}/{task}"
        for name in ("kl/old", "ratio/mean", "ratio/max", "clip_ratio/region_mean")
        for task in ("arithmetic", "box", "bars", "sorting")
        if f"{name}/{task}" in whole.metrics
    ]
    assert len(names) >= 12
    for name in (*names, "kl/old", "ratio/max", "clip_ratio/region_mean"):
        assert parts.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-3, abs=1e-6), name
    largest = max(whole.metrics[name] for name in names if name.startswith("ratio/max/"))
    assert whole.metrics["ratio/max"] == pytest.approx(largest)
    assert whole.metrics["optimization/skipped_steps"] == 0


def test_nothing_is_compiled_after_the_first_step(tiny_run):
    compiled = (sample_compiled, loss_gradient, optimizer._step)
    steps(tiny_run())
    before = [function._cache_size() for function in compiled]
    steps(tiny_run(), 3)
    assert [function._cache_size() for function in compiled] == before


def test_the_gradient_is_that_of_the_loss(tiny_run):
    """Against central differences along a random direction."""
    from g2rpo_jax.trainer import update

    description = with_tasks(tiny_run("entropy.low=2", "entropy.high=3", "optimization.beta=0.1"))
    seen = []
    original = update.loss_gradient

    def note(*arguments):
        seen.append(arguments)
        return original(*arguments)

    update.loss_gradient = note
    try:
        steps(description)
    finally:
        update.loss_gradient = original
    definition, params, *rest = seen[0]
    gradient, _ = original(*seen[0])
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    noise = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    direction = jax.tree.unflatten(structure, noise)

    def loss_at(size):
        moved = jax.tree.map(lambda p, d: p + size * d, params, direction)
        return float(update._loss(definition, moved, *rest)[0])

    slope = sum(
        float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), noise, strict=True)
    )
    assert slope != 0
    assert (loss_at(3e-4) - loss_at(-3e-4)) / 6e-4 == pytest.approx(slope, rel=0.03)


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_run, monkeypatch):
    from g2rpo_jax.trainer import update

    original = update.loss_gradient

    def broken(*arguments):
        gradient, metrics = original(*arguments)
        return jax.tree.map(lambda g: g * jnp.nan, gradient), metrics

    description = tiny_run("optimization.max_skipped_steps=1")
    before = load_policy(description.model.name, resolve_device("cpu")).params
    monkeypatch.setattr(update, "loss_gradient", broken)
    (result,) = steps(description)
    assert math.isnan(result.metrics["grad_norm"])
    assert distance(result.trained.policy.params, before) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.trained.moments))
    with pytest.raises(RunError, match="step 2: the gradient is not finite"):
        steps(description, 2)


@pytest.mark.slow
def test_two_devices_do_what_one_does():
    assert "same" in run(WORKER)


def test_what_cannot_be_divided_is_whole_everywhere():
    placement = Placement(jax.devices()[:1])
    odd = placement.divided(np.zeros((3, 2), np.float32))
    assert odd.shape == (3, 2)


def test_weights_are_a_state_of_arrays(policy):
    assert isinstance(policy.params, nnx.State)
    assert {leaf.dtype for leaf in jax.tree.leaves(policy.params)} == {np.dtype("float32")}
