"""The core against the oracle in plain Python, on random and on drawn batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from g2rpo import ESTIMATORS, EMAState, ema_grpo_advantages, gaussian_advantages, match_gaussian
from g2rpo.advantages import takes_lengths
from g2rpo.testing import ORDINARY, oracle, reward_batches

STAGES = ["standardize", "match", "match-all", None]
TIES = ["midpoint", "barycentre"]
BASELINES = sorted(set(ESTIMATORS) - {"gaussian"})

#: Kinds whose sums, with dyadic weights, are exact in single precision too: the same ties.
EXACT = ("binary", "levels")


def random_batch(rng, prompts):
    """Prompts of four tasks with different kinds of reward, some absent, some infinite."""
    rewards, groups, tasks = [], [], []
    for prompt in range(prompts):
        size, task = int(rng.choice([1, 2, 3, 4, 7, 8, 8, 8, 16])), int(rng.integers(0, 4))
        draw = [
            lambda n: rng.integers(0, 2, n).astype(float),
            lambda n: rng.random(n).astype(np.float32).astype(float),
            lambda n: np.float32(rng.standard_cauchy(n)).astype(float),
            lambda n: rng.choice([0.0, 0.5, 1.0, np.inf, -np.inf], n),
        ][task](size)
        draw = np.where(rng.random(size) < 0.06, np.nan, draw)
        rewards.append(np.full(size, draw[0]) if rng.random() < 0.15 else draw)
        groups.append(np.full(size, prompt * 3 - 40))
        tasks.append(np.full(size, task * 11 - 5))
    # Always as many rollouts, so that JAX compiles once: the prompts cut off stay ragged.
    shuffle = rng.permutation(sum(map(len, rewards)))[: 4 * prompts]
    return [np.concatenate(a)[shuffle] for a in (rewards, groups, tasks)]


def expected(function, arrays, **options):
    options = {name: x.tolist() if name == "lengths" else x for name, x in options.items()}
    return function(*(a.tolist() for a in arrays), **options)


def lengths_for(name, rewards):
    """Return the option ``lengths`` of an estimator that takes it, some of them 0."""
    lengths = np.random.default_rng(len(rewards)).integers(0, 50, len(rewards))
    return {"lengths": lengths} if takes_lengths(ESTIMATORS[name]) else {}


def close(got, wanted, tolerance):
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("seed", range(3))
def test_matching_agrees_with_the_oracle(library, seed, ties):
    values, segments, _ = random_batch(np.random.default_rng(seed), 60)
    matched = library.call(match_gaussian, values, segments, ties=ties)
    wanted = expected(oracle.match_gaussian, (values, segments), ties=ties)
    np.testing.assert_allclose(matched, wanted, atol=3 * library.tolerance)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", range(3))
def test_advantages_agree_with_the_oracle(library, seed, stage):
    batch = random_batch(np.random.default_rng(seed), 60)
    ties = TIES[seed % 2]
    options = {"task_stage": stage, "ties": ties, "resolution": 0.25 if seed == 2 else None}
    advantages = library.call(gaussian_advantages, *batch, **options)
    wanted = expected(oracle.gaussian_advantages, batch, **options)
    np.testing.assert_allclose(advantages, wanted, atol=3 * library.tolerance)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_advantages_of_components_agree_with_the_oracle(library, rng, stage, decoupled):
    rewards, groups, tasks = random_batch(rng, 60)
    finite = np.where(np.isfinite(rewards), np.round(4 * np.clip(rewards, -9, 9)) / 4, np.nan)
    parts = np.stack([finite, rng.integers(0, 3, len(finite)) / 2], axis=1)
    options = {"task_stage": stage, "component_weights": [1.0, 0.5], "decoupled": decoupled}
    advantages = library.call(gaussian_advantages, parts, groups, tasks, **options)
    wanted = expected(oracle.gaussian_advantages, (parts, groups, tasks), **options)
    np.testing.assert_allclose(advantages, wanted, atol=4 * library.tolerance)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("components", [1, 2])
def test_baselines_agree_with_the_oracle(library, rng, name, components):
    rewards, groups, tasks = random_batch(rng, 60)
    rewards = np.where(np.isfinite(rewards), np.clip(rewards, -20, 20), 0.25)
    options = {}
    if components == 2:
        rewards = np.stack([rewards, rng.random(len(rewards))], axis=1)
        options = {"component_weights": [1.0, 0.5]}
    batch = rewards.astype(library.dtype), groups, tasks
    advantages = called(library, name, batch, **options)
    options |= lengths_for(name, rewards)
    close(advantages, expected(oracle.ORACLES[name], batch, **options), 40 * library.tolerance)


def called(library, name, batch, **options):
    lengths = {key: library.array(x) for key, x in lengths_for(name, batch[0]).items()}
    return library.call(ESTIMATORS[name], *batch, **lengths, **options)


WITH_MEANS = ["grpo", "grpo-batch", "dr-grpo", "rloo", "reinforce++", "reinforce++-baseline", "opo"]


@pytest.mark.parametrize("name", WITH_MEANS)
def test_baselines_with_infinite_rewards_agree_with_the_oracle(library, rng, name):
    batch = random_batch(rng, 60)
    if name == "reinforce++-baseline":
        # Single precision ends at 1e-6 of the largest reward, which divides all others here.
        batch[0] = np.where(np.isfinite(batch[0]), np.clip(batch[0], -20, 20), batch[0])
    advantages = called(library, name, batch)
    wanted = expected(oracle.ORACLES[name], batch, **lengths_for(name, batch[0]))
    assert np.isnan(wanted).any()
    close(advantages, wanted, 40 * library.tolerance)


def test_running_moments_over_several_steps_agree_with_the_oracle(library):
    state, moments = EMAState.start(4, library.array(np.zeros(1))), {}
    for seed in range(3):
        rewards, groups, tasks = random_batch(np.random.default_rng(seed), 60)
        rewards = np.where(np.isinf(rewards), 3.0, rewards)
        batch = [library.array(a) for a in (rewards, groups, (tasks + 5) // 11)]
        advantages, state = ema_grpo_advantages(*batch, state, decay=0.75)
        given = [library.numpy(a) for a in batch]
        wanted = expected(oracle.ema_grpo_advantages, given, moments=moments, decay=0.75)
        close(library.numpy(advantages), wanted, 40 * library.tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stage", STAGES)
def test_advantages_of_drawn_batches_agree_with_the_oracle(dtype, stage):
    @given(reward_batches(dtype=dtype), st.sampled_from(TIES))
    def agrees(batch, ties):
        advantages = gaussian_advantages(*batch, task_stage=stage, ties=ties)
        wanted = expected(oracle.gaussian_advantages, batch, task_stage=stage, ties=ties)
        close(advantages, wanted, 3e-6 if dtype == "float32" else 1e-12)

    agrees()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_advantages_of_drawn_components_agree_with_the_oracle(dtype, decoupled):
    @given(
        reward_batches(kinds=EXACT, components=2, dtype=dtype),
        st.lists(st.sampled_from([0.0, 0.5, 1.0, -2.0]), min_size=2, max_size=2),
        st.sampled_from(STAGES),
    )
    def agrees(batch, weights, stage):
        options = {"component_weights": weights, "task_stage": stage, "decoupled": decoupled}
        advantages = gaussian_advantages(*batch, **options)
        wanted = expected(oracle.gaussian_advantages, batch, **options)
        close(advantages, wanted, 6e-6 if dtype == "float32" else 1e-12)

    agrees()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_on_drawn_batches_agree_with_the_oracle(dtype, name):
    @given(reward_batches(kinds=ORDINARY, dtype=dtype))
    def agrees(batch):
        options = lengths_for(name, batch.rewards)
        advantages = ESTIMATORS[name](*batch, **options)
        wanted = np.asarray(expected(oracle.ORACLES[name], batch, **options))
        scale = max(1.0, np.abs(wanted).max())
        tolerance = 3e-5 if dtype == "float32" else 1e-10
        close(advantages / scale, wanted / scale, tolerance)

    agrees()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matching_of_drawn_batches_agrees_with_scipy(dtype):
    """An independent implementation with ties: the midpoints of a block's ranks."""

    @given(reward_batches(max_groups=1, allow_nan=False, dtype=dtype))
    def agrees(batch):
        close(match_gaussian(batch.rewards), scipy_match(batch.rewards), 3e-6)

    agrees()


def scipy_match(values):
    n = len(values)
    low, high = (rankdata(values, method).astype(int) for method in ("min", "max"))
    quantiles = norm.ppf((np.arange(n) + 0.5) / n)
    return [math.fsum(quantiles[a - 1 : b]) / (b - a + 1) for a, b in zip(low, high, strict=True)]


@pytest.mark.parametrize("levels", [3, 40, None])
@pytest.mark.parametrize("seed", range(3))
def test_matching_agrees_with_scipy(library, seed, levels):
    rng = np.random.default_rng(seed)
    values = rng.permutation(200) if levels is None else rng.integers(0, levels, 200)
    matched = library.call(match_gaussian, values.astype(float))
    np.testing.assert_allclose(matched, scipy_match(values), atol=2 * library.tolerance)
