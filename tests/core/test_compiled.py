"""The same results under ``jax.jit``, ``jax.vmap`` and ``torch.compile`` without graph breaks."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from g2rpo import (
    ESTIMATORS,
    EMAState,
    LengthTarget,
    adapt_entropy_weights,
    adapt_task_weights,
    calibrate_lengths,
    ema_grpo_advantages,
    entropy_from_logits,
    g2rpo_loss,
    gaussian_advantages,
    gdpo_advantages,
    grpo_advantages,
    high_entropy_mask,
    length_reward,
    match_gaussian,
    off_policy_mask,
    opo_advantages,
    pass_at_k_advantages,
    rloo_advantages,
    sampler_weights,
    task_means,
)


def batch(rng):
    groups = np.repeat(np.arange(9), [1, 2, 8, 8, 3, 8, 4, 8, 6])
    rewards = rng.integers(0, 4, len(groups)) / 3
    rewards[::9], rewards[5] = np.nan, np.inf
    return rewards.astype(np.float32), groups.astype(np.int32), (groups % 3).astype(np.int32)


def loss_inputs(rng):
    lengths = rng.integers(0, 7, 5)
    mask = np.arange(6) < lengths[:, None]
    logprobs = -np.abs(rng.standard_normal((5, 6)))
    arrays = [
        np.where(mask, logprobs, -np.inf),
        logprobs + 0.3 * rng.standard_normal((5, 6)),
        rng.standard_normal(5),
        mask,
        np.abs(rng.standard_normal((5, 6))),
        np.asarray([0, 1, 2, 0, 1]),
        rng.standard_normal(5),
    ]
    return [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]


def loss_of(low, high, logprobs, old, advantages, mask, entropies, tasks, length, **options):
    terms, metrics = g2rpo_loss(
        logprobs,
        old,
        advantages,
        mask,
        entropies=entropies,
        tasks=tasks,
        entropy_low=low,
        entropy_high=high,
        num_tasks=low.shape[0],
        length_advantages=length,
        ref_logprobs=old,
        beta=0.1,
        **options,
    )
    return terms.total, (terms, metrics)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


ADVANTAGES = {
    "match": lambda r, g, t: match_gaussian(r, g),
    "barycentre": lambda r, g, t: match_gaussian(r, g, ties="barycentre", resolution=0.5),
    "standardize": gaussian_advantages,
    "match-all": lambda r, g, t: gaussian_advantages(r, g, t, task_stage="match-all"),
    "grpo": lambda r, g, t: grpo_advantages(r, g),
    "grpo-batch": lambda r, g, t: grpo_advantages(r, g, scale="batch"),
    "rloo": lambda r, g, t: rloo_advantages(r, g),
    "gdpo": lambda r, g, t: gdpo_advantages(r, g),
    "ema": lambda r, g, t: ema_grpo_advantages(r, g, t, EMAState.start(3, r))[0],
    "reinforce++": lambda r, g, t: ESTIMATORS["reinforce++"](r, g, t, task_weights=0.1 * r[6:9]),
    "reinforce++-baseline": lambda r, g, t: ESTIMATORS["reinforce++-baseline"](r, g, t),
    "opo": lambda r, g, t: opo_advantages(r, g, lengths=g + 1 + t),
    "pass@k": lambda r, g, t: pass_at_k_advantages(r, g, k=3),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_under_jit_equal_eager_ones(rng, name):
    arrays = [jnp.asarray(a) for a in batch(rng)]
    eager, compiled = ADVANTAGES[name](*arrays), jax.jit(ADVANTAGES[name])(*arrays)
    np.testing.assert_allclose(compiled, eager, atol=2e-6)


def test_jit_compiles_once_for_a_batch_size(rng):
    traces = []

    @jax.jit
    def advantages(rewards, groups, tasks):
        traces.append(1)
        return gaussian_advantages(rewards, groups, tasks)

    for seed in range(3):
        arrays = batch(np.random.default_rng(seed))
        shuffle = rng.permutation(len(arrays[0]))
        advantages(*(jnp.asarray(a[shuffle]) for a in arrays))
    assert len(traces) == 1


@pytest.mark.parametrize("ties", ["midpoint", "barycentre"])
def test_equal_blocks_are_bit_equal_and_mirrored_ones_opposite_under_jit(ties):
    """Fused multiply-adds must not make results depend on position or sign."""
    match = jax.jit(partial(match_gaussian, ties=ties))
    pattern = np.asarray([0.0, 1, 1, 1, 1, 2, 2, 5, 6, 7], np.float32)
    groups = jnp.asarray(np.repeat(np.arange(703), 10), dtype=jnp.int32)
    values = np.tile(pattern, 703)
    matched = np.asarray(match(jnp.asarray(values), groups)).reshape(703, 10)
    assert np.array_equal(matched, np.tile(matched[:1], (703, 1)))
    mirrored = np.asarray(match(jnp.asarray(-values), groups)).reshape(703, 10)
    assert np.array_equal(mirrored, -matched)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 100.0, 1e30])
def test_equal_sums_of_components_are_ties_under_jit(scale):
    """Equal rows are ties, and opposite advantages cancel, at any position."""
    weights = [0.9 * scale, 0.1 * scale, 0.3 * scale]
    row = np.asarray([0.37, 0.7, 0.11], np.float32)
    parts, groups = np.tile(row, (703, 1)), jnp.zeros(703, dtype=jnp.int32)
    summed = jax.jit(partial(gaussian_advantages, component_weights=weights))
    assert not np.asarray(summed(jnp.asarray(parts), groups)).any()

    up = np.arange(7.0, dtype=np.float32)
    parts = np.tile(np.stack([up, -up], axis=1), (101, 1))
    groups = jnp.asarray(np.repeat(np.arange(101), 7), dtype=jnp.int32)
    decoupled = partial(
        gaussian_advantages, component_weights=[0.3 * scale, 0.3 * scale], decoupled=True
    )
    assert not np.asarray(jax.jit(decoupled)(jnp.asarray(parts), groups)).any()


@pytest.mark.parametrize("name", ["match", "standardize", "grpo", "opo", "pass@k"])
def test_vmap_equals_a_loop_over_batches(rng, name):
    rewards, groups, _ = batch(rng)
    rows = [np.stack([a[rng.permutation(len(a))] for _ in range(3)]) for a in (rewards, groups)]
    rewards, groups = map(jnp.asarray, rows)
    tasks = groups % jnp.asarray(3, groups.dtype)
    together = jax.vmap(ADVANTAGES[name])(rewards, groups, tasks)
    for i in range(3):
        one = ADVANTAGES[name](rewards[i], groups[i], tasks[i])
        np.testing.assert_allclose(together[i], one, atol=1e-6)


def test_length_and_entropy_shaping_under_jit_equal_eager_results(rng):
    rewards, _, tasks = map(jnp.asarray, batch(rng))
    lengths = jnp.asarray(rng.integers(1, 90, rewards.shape[0]))
    state = jnp.asarray([[0.0, 10, 50, jnp.inf]] * 3)

    def step(state, control, lengths, right, tasks, logits):
        state = calibrate_lengths(state, lengths, right, tasks, min_samples=2)
        reward = length_reward(lengths, state[tasks], right=right)
        fixed = length_reward(lengths, LengthTarget(1, 2, 30, 40))
        entropies = entropy_from_logits(logits)
        mask = jnp.ones(entropies.shape, dtype=bool)
        means, present = task_means(entropies, mask, tasks, 3)
        control = adapt_entropy_weights(control, means, means * 0.5, means * 0.9, present)
        return state, control, reward, fixed

    arguments = (
        state,
        jnp.zeros(3),
        lengths,
        rewards > 0.5,
        tasks,
        jnp.asarray(rng.standard_normal((rewards.shape[0], 4, 11)), dtype=jnp.float32),
    )
    eager, compiled = step(*arguments), jax.jit(step)(*arguments)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["ppo", "gspo", "cispo", "sapo"])
def test_loss_and_gradient_agree_between_jax_and_torch(rng, loss_type):
    arrays = loss_inputs(rng)
    band = [np.asarray([0.1, 0.9, 0.2], np.float32), np.asarray([0.4, np.inf, 9.0], np.float32)]

    def of_jax(logprobs, entropies):
        rest = [jnp.asarray(a) for a in arrays]
        rest[0], rest[4] = logprobs, entropies
        return loss_of(*map(jnp.asarray, band), *rest, loss_type=loss_type)

    given = jnp.asarray(arrays[0]), jnp.asarray(arrays[4])
    gradient = jax.jit(jax.value_and_grad(of_jax, argnums=(0, 1), has_aux=True))
    (_, (terms, metrics)), grads = gradient(*given)

    tensors = [torch.tensor(a) for a in arrays]
    tensors[0].requires_grad_()
    tensors[4].requires_grad_()
    total, (of_torch, their_metrics) = loss_of(
        *map(torch.tensor, band), *tensors, loss_type=loss_type
    )
    total.backward()
    for ours, theirs in zip(terms, of_torch, strict=True):
        assert float(ours) == pytest.approx(theirs.item(), abs=1e-6)
    for name, value in metrics.items():
        theirs = their_metrics[name].numpy()
        np.testing.assert_allclose(value, theirs, rtol=1e-6, atol=2e-6, err_msg=name)
    for ours, theirs in zip(grads, (tensors[0], tensors[4]), strict=True):
        np.testing.assert_allclose(ours, theirs.grad, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["standardize", "barycentre", "ema", "reinforce++", "reinforce++-baseline", "opo", "pass@k"],
)
def test_compiled_advantages_equal_eager_ones(rng, name):
    arrays = [torch.tensor(a) for a in batch(rng)]
    with warnings.catch_warnings():
        # array-api-compat caches its type checks, and Dynamo warns about the cache.
        warnings.filterwarnings("ignore", message=".*lru_cache")
        compiled = torch.compile(ADVANTAGES[name], fullgraph=True)(*arrays)
    np.testing.assert_allclose(compiled, ADVANTAGES[name](*arrays), atol=2e-6)


def token_selection(logprobs, old, advantages, mask, entropies, tasks, norms):
    """Sampler weights, masks and task weights, in one function."""
    weights, metrics = sampler_weights(logprobs, old, mask, level="geometric", low=0.9, high=1.2)
    near = off_policy_mask(logprobs, old, advantages, mask, threshold=0.05)
    unsure = high_entropy_mask(entropies, mask, tasks, share=0.3)
    return weights, near, unsure, adapt_task_weights(norms, norms), *metrics.values()


@pytest.mark.slow
def test_compiled_token_selection_equals_eager_selection(rng):
    arrays = [torch.tensor(a) for a in loss_inputs(rng)]
    expected = token_selection(*arrays)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lru_cache")
        compiled = torch.compile(token_selection, fullgraph=True)(*arrays)
    for ours, eager in zip(compiled, expected, strict=True):
        np.testing.assert_allclose(ours, eager, rtol=1e-5, atol=1e-6)


def test_token_selection_under_jit_equals_eager_selection(rng):
    arrays = [jnp.asarray(a) for a in loss_inputs(rng)]
    for ours, eager in zip(
        jax.jit(token_selection)(*arrays), token_selection(*arrays), strict=True
    ):
        np.testing.assert_allclose(ours, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_loss_has_the_eager_value_and_gradients(rng):
    arrays = [torch.tensor(a) for a in loss_inputs(rng)]
    band = torch.tensor([0.1, 0.9, 0.2]), torch.tensor([0.4, torch.inf, 9.0])
    gradients = []
    for compiled in (False, True):
        logprobs, entropies = (arrays[i].clone().requires_grad_() for i in (0, 4))
        given = [logprobs, *arrays[1:4], entropies, *arrays[5:]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lru_cache")
            function = torch.compile(loss_of, fullgraph=True) if compiled else loss_of
            total, _ = function(*band, *given)
        total.backward()
        gradients.append([total.detach(), logprobs.grad, entropies.grad])
    for eager, ours in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, eager, atol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import g2rpo
sharding = NamedSharding(Mesh(np.asarray(jax.devices()), "data"), PartitionSpec("data"))
plain = [jnp.asarray(np.arange(16) % 5 / 5), jnp.arange(16) // 4, jnp.arange(16) // 8]
sharded = [jax.device_put(array, sharding) for array in plain]
assert len(jax.devices()) == 4
for name in ("gaussian", "grpo", "ema-grpo"):
    estimator = g2rpo.ESTIMATORS[name]
    for function in (estimator, jax.jit(estimator)):
        np.testing.assert_allclose(function(*sharded), estimator(*plain), atol=1e-6)
"""


@pytest.mark.slow
def test_sharded_arrays_have_the_advantages_of_whole_ones():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=os.environ | flags, check=True)
