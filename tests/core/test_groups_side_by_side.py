"""A number for ``groups``: the same bits as with labels, and no sort of all rollouts."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2rpo import ESTIMATORS, gaussian_advantages, match_gaussian, register_estimator
from g2rpo.advantages import takes_lengths
from g2rpo.testing import reward_batches

STAGES = ["standardize", "match", "match-all", None]
TIES = ["midpoint", "barycentre"]
SIZES = [1, 2, 3, 8, 31, 32, 33, 50]  # counted up to 32, sorted row by row beyond


def batch(rng, members, prompts=12):
    """Prompts of three tasks, with ties, infinities and absent rewards, some without signal."""
    groups = np.repeat(np.arange(prompts), members)
    rewards = rng.integers(0, 5, len(groups)) / 4 + (groups % 3 == 1) * rng.random(len(groups))
    rewards[rng.random(len(groups)) < 0.1] = np.nan
    rewards[rng.random(len(groups)) < 0.05] = np.inf
    rewards[rng.random(len(groups)) < 0.05] = -np.inf
    rewards[groups == 4] = 0.25
    rewards[groups == 5] = np.nan
    return rewards, groups, 7 * (groups % 3) - 5


def same(library, function, rewards, groups, tasks, members, **options):
    arrays = [None if a is None else library.array(a) for a in (rewards, groups, tasks)]
    by_label = library.numpy(function(*arrays, **options))
    arrays[1] = members
    by_number = library.numpy(function(*arrays, **options))
    np.testing.assert_array_equal(by_number, by_label)
    return by_number


@pytest.mark.parametrize("members", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_advantages_of_consecutive_groups_are_those_of_labels(library, rng, members, stage):
    rewards, groups, tasks = batch(rng, members)
    for ties in TIES:
        for resolution in (None, 0.5):
            options = {"task_stage": stage, "ties": ties, "resolution": resolution}
            same(library, gaussian_advantages, rewards, groups, tasks, members, **options)
    found = same(library, gaussian_advantages, rewards, groups, None, members, task_stage=stage)
    assert np.isfinite(found).all()
    assert found.any() or members == 1


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_components_of_consecutive_groups_are_those_of_labels(library, rng, stage, decoupled):
    rewards, groups, tasks = batch(rng, 8)
    parts = np.stack([rewards, rng.random(len(rewards)).round(1)], axis=1)
    parts[np.isinf(parts)] = 2.0
    options = {"task_stage": stage, "component_weights": [0.9, 0.1], "decoupled": decoupled}
    same(library, gaussian_advantages, parts, groups, tasks, 8, **options)


@pytest.mark.parametrize("members", SIZES)
@pytest.mark.parametrize("ties", TIES)
def test_matching_of_consecutive_segments_is_that_of_labels(library, rng, members, ties):
    values, segments, _ = batch(rng, members)
    matched = library.call(match_gaussian, values, segments, ties=ties)
    by_number = match_gaussian(library.array(values), members, ties=ties)
    assert np.array_equal(library.numpy(by_number), matched)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_drawn_batches_have_the_same_bits_for_consecutive_groups_and_labels(dtype):
    @given(
        st.data(),
        st.integers(1, 40),
        st.integers(1, 6),
        st.sampled_from(STAGES),
        st.sampled_from(TIES),
    )
    def agrees(data, members, prompts, stage, ties):
        drawn = data.draw(reward_batches(dtype=dtype, max_group_size=12))
        rewards = np.resize(drawn.rewards, members * prompts)
        groups, tasks = np.arange(members * prompts) // members, np.resize(drawn.tasks, prompts)
        options = {"task_stage": stage, "ties": ties}
        by_number = gaussian_advantages(rewards, members, tasks[groups], **options)
        by_label = gaussian_advantages(rewards, groups, tasks[groups], **options)
        np.testing.assert_array_equal(by_number, by_label)

    agrees()


@pytest.mark.parametrize("size", [16, 64, 4096, 200_000])
@pytest.mark.parametrize("members", [8, 32])
def test_blocks_of_small_groups_do_not_change_a_bit_beside_a_large_one(library, size, members):
    """Blocks of small groups are looked up in a table, unless there is a large group."""
    rng = np.random.default_rng(size)
    values = rng.integers(0, 9, size - size % members) / 4
    groups = np.arange(len(values)) // members
    large = size // 2 if size < 100 else 40
    beside = np.concatenate([values, np.arange(float(large))])
    labels = np.concatenate([groups, np.full(large, -1)])
    for ties in TIES:
        alone = library.call(match_gaussian, values, groups, ties=ties)
        among = library.call(match_gaussian, beside, labels, ties=ties)
        assert np.array_equal(among[: len(values)], alone)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("members", [1, 4, 40])
def test_every_estimator_takes_a_number_of_consecutive_rollouts(library, rng, name, members):
    rewards, groups, tasks = batch(rng, members)
    options = {}
    if takes_lengths(ESTIMATORS[name]):
        options["lengths"] = library.array(1 + groups % 7)
    same(library, ESTIMATORS[name], rewards, groups, tasks, members, **options)
    parts = np.stack([rewards, rng.random(len(rewards))], axis=1)
    options["component_weights"] = [1.0, 0.5]
    same(library, ESTIMATORS[name], parts, groups, None, members, **options)


def test_a_registered_estimator_gets_labels(library):
    def centred(rewards, groups, tasks=None):
        assert tuple(groups.shape) == tuple(rewards.shape)
        return rewards * 0.0 + library.xp.astype(groups, rewards.dtype)

    register_estimator("centred", centred)
    try:
        found = ESTIMATORS["centred"](library.array(np.arange(6.0)), 2)
        assert library.numpy(found).tolist() == [0, 0, 1, 1, 2, 2]
    finally:
        del ESTIMATORS["centred"]


@pytest.mark.parametrize("members", [8, 40])
@pytest.mark.parametrize("stage", STAGES)
def test_the_number_of_rollouts_is_static_under_jit(rng, members, stage):
    rewards, groups, tasks = (jnp.asarray(a) for a in batch(rng, members))
    function = partial(gaussian_advantages, task_stage=stage)
    by_number = jax.jit(function, static_argnums=1)(rewards, members, tasks)
    by_label = jax.jit(function)(rewards, groups, tasks)
    np.testing.assert_array_equal(by_number, by_label)


def test_vmap_over_batches_of_consecutive_groups_equals_a_loop(rng):
    rewards = jnp.asarray(np.stack([batch(rng, 8)[0] for _ in range(3)]))
    tasks = jnp.asarray(batch(rng, 8)[2])
    function = lambda rewards: gaussian_advantages(rewards, 8, tasks)  # noqa: E731
    together = jax.vmap(function)(rewards)
    for row, alone in zip(together, rewards, strict=True):
        np.testing.assert_allclose(row, function(alone), atol=1e-6)


def test_no_value_is_read_from_a_fake_tensor():
    """Tensors without values cannot be read, and must not enter the cache of tables."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    rewards = torch.rand(48, generator=torch.Generator().manual_seed(0))
    tasks = torch.arange(48) // 24
    before = gaussian_advantages(rewards, 6, tasks)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (rewards, tasks)]
        for members in (4, 6, 48):
            assert gaussian_advantages(fake[0], members, fake[1] * 0).shape == (48,)
    assert torch.equal(gaussian_advantages(rewards, 6, tasks * 1), before)
    groups = torch.arange(48) // 4
    by_label = gaussian_advantages(rewards, groups, tasks)
    assert torch.equal(gaussian_advantages(rewards, 4, tasks), by_label)


@pytest.mark.slow
@pytest.mark.parametrize("members", [8, 40])
def test_compiled_advantages_of_consecutive_groups_equal_eager_ones(rng, members):
    rewards, _, tasks = (torch.asarray(a) for a in batch(rng, members))
    compiled = torch.compile(gaussian_advantages, fullgraph=True)(rewards, members, tasks)
    np.testing.assert_allclose(compiled, gaussian_advantages(rewards, members, tasks), atol=1e-9)


R, T = np.arange(8.0), np.asarray([0, 0, 0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("function", "groups", "error", "message"),
    [
        (
            gaussian_advantages,
            3,
            ValueError,
            "groups must be labels or a number that divides the 8",
        ),
        (gaussian_advantages, 0, ValueError, "divides the 8 rollouts, got 0"),
        (match_gaussian, -4, ValueError, "segments must be labels or a number that divides the 8"),
        (ESTIMATORS["grpo"], 5, ValueError, "groups must be labels or a number that divides the 8"),
        (gaussian_advantages, True, TypeError, "groups must be integer labels or a number"),
        (gaussian_advantages, 2.0, TypeError, "groups must be an array of an Array API library"),
        (gaussian_advantages, np.asarray(4), TypeError, "under jax.jit a number is a static"),
    ],
)
def test_invalid_numbers_of_rollouts_are_refused(function, groups, error, message):
    with pytest.raises(error, match=message):
        function(R, groups)


def test_a_consecutive_group_of_several_tasks_is_refused(library):
    rewards, tasks = library.array(R), library.array(T)
    if library.name in ("numpy", "torch"):
        with pytest.raises(ValueError, match="tasks must be the same for all rollouts of a group"):
            gaussian_advantages(rewards, 4, tasks)
    assert gaussian_advantages(rewards, 4, tasks, task_stage=None).shape == (8,)
