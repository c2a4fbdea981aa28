"""Gaussian advantages: properties of each task stage, and independence of tasks."""

from __future__ import annotations

import numpy as np
import pytest

import g2rpo
from g2rpo import gaussian_advantages, match_gaussian

STAGES = ["standardize", "match", "match-all", None]


def batch(rng, prompts=40):
    """Binary, dense and heavy-tailed prompts of mixed group sizes, some without signal."""
    sizes = rng.choice([1, 2, 5, 8, 8, 16], size=prompts)
    groups = np.repeat(np.arange(prompts), sizes)
    tasks = groups % 3
    draws = [
        rng.integers(0, 2, len(groups)).astype(float),
        rng.random(len(groups)),
        rng.standard_cauchy(len(groups)),
    ]
    rewards = np.choose(tasks, draws)
    return np.where(groups % 7 == 0, 0.5, rewards), groups, tasks


def has_signal(rewards, groups):
    return np.asarray([len(set(rewards[groups == g])) > 1 for g in groups])


def test_standardised_tasks_have_unit_variance_and_prompts_zero_mean(library, rng):
    rewards, groups, tasks = batch(rng)
    advantages = library.call(gaussian_advantages, rewards, groups, tasks)
    signal = has_signal(rewards.astype(library.dtype), groups)
    for task in range(3):
        own = advantages[(tasks == task) & signal]
        assert np.mean(own**2) == pytest.approx(1, abs=5 * library.tolerance)
    for group in np.unique(groups):
        assert abs(advantages[groups == group].sum()) <= 50 * library.tolerance
    assert np.array_equal(advantages[~signal], np.zeros(np.sum(~signal)))


@pytest.mark.parametrize("stage", ["standardize", None])
def test_signs_are_those_of_the_group(library, rng, stage):
    rewards, groups, tasks = batch(rng)
    matched = library.call(match_gaussian, rewards, groups)
    advantages = library.call(gaussian_advantages, rewards, groups, tasks, task_stage=stage)
    assert np.array_equal(np.sign(advantages), np.sign(matched))


def test_second_matching_flips_signs_where_standardising_does_not(library):
    """Twenty prompts with 5 of 8 right and one with 7 of 8: its right answers get less than 0."""
    rewards = np.concatenate([np.tile([1.0] * 5 + [0.0] * 3, 20), [1.0] * 7, [0.0]])
    groups = np.repeat(np.arange(21), 8)
    right = slice(160, 167)
    once = library.call(gaussian_advantages, rewards, groups, task_stage=None)
    np.testing.assert_allclose(once[right], 0.219, atol=5e-4)
    twice = library.call(gaussian_advantages, rewards, groups, task_stage="match")
    np.testing.assert_allclose(twice[right], -0.295, atol=5e-4)
    assert np.all(library.call(gaussian_advantages, rewards, groups)[right] > 0)


def test_match_all_gives_groups_without_signal_an_advantage(library):
    rewards = np.concatenate([np.tile([0.0], 8), np.tile([1.0] + [0.0] * 7, 6)])
    groups = np.repeat(np.arange(7), 8)
    flat = slice(0, 8)
    loud = library.call(gaussian_advantages, rewards, groups, task_stage="match-all")
    assert np.all(loud[flat] > 0.3)
    for stage in ("standardize", "match", None):
        quiet = library.call(gaussian_advantages, rewards, groups, task_stage=stage)
        assert np.array_equal(quiet[flat], np.zeros(8))


@pytest.mark.parametrize("stage", STAGES)
def test_order_and_other_tasks_do_not_change_a_bit(library, rng, stage):
    rewards, groups, tasks = batch(rng)
    whole = library.call(gaussian_advantages, rewards, groups, tasks, task_stage=stage)
    shuffle = rng.permutation(len(rewards))
    shuffled = library.call(
        gaussian_advantages, rewards[shuffle], groups[shuffle], tasks[shuffle], task_stage=stage
    )
    assert np.array_equal(shuffled, whole[shuffle])
    other = np.where(tasks == 0, rewards, np.resize([np.inf, 1e30, -3.0, np.nan], len(rewards)))
    changed = library.call(gaussian_advantages, other, groups, tasks, task_stage=stage)
    assert np.array_equal(changed[tasks == 0], whole[tasks == 0])


@pytest.mark.parametrize("stage", STAGES)
def test_absent_rewards_get_0_and_change_no_other_advantage(library, rng, stage):
    rewards, groups, tasks = batch(rng)
    absent = rng.random(len(rewards)) < 0.2
    advantages = library.call(
        gaussian_advantages, np.where(absent, np.nan, rewards), groups, tasks, task_stage=stage
    )
    alone = library.call(
        gaussian_advantages, *(a[~absent] for a in (rewards, groups, tasks)), task_stage=stage
    )
    np.testing.assert_allclose(advantages[~absent], alone, atol=library.tolerance)
    assert np.array_equal(advantages[absent], np.zeros(absent.sum()))


def test_without_labels_there_is_one_task(library, rng):
    rewards, groups, _ = batch(rng)
    assert np.array_equal(
        library.call(gaussian_advantages, rewards, groups),
        library.call(gaussian_advantages, rewards, groups, np.full(len(groups), 9)),
    )


def test_components_are_added_with_their_weights_before_matching(library, rng):
    rewards, groups, tasks = batch(rng)
    parts = np.stack([rewards, rng.random(len(rewards)), rng.random(len(rewards))], axis=1)
    weights = [1.0, 0.5, 0.0]
    parts[3, 1], parts[5, :], parts[7, 2] = np.nan, np.nan, np.inf
    counted = np.nan_to_num(np.where(np.isinf(parts), 0, parts)).astype(library.dtype)
    summed = counted @ np.asarray(weights, library.dtype)
    summed[5] = np.nan
    got = library.call(gaussian_advantages, parts, groups, tasks, component_weights=weights)
    expected = library.call(gaussian_advantages, summed, groups, tasks)
    np.testing.assert_allclose(got, expected, atol=library.tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_decoupled_components_are_matched_one_by_one_and_then_added(library, rng, scale):
    rewards, groups, tasks = batch(rng)
    parts = np.stack([rewards, 1000 * rng.random(len(rewards))], axis=1)
    parts[2, 0], parts[4, :] = np.nan, np.nan
    weights = np.asarray([1.0, 0.25]) * scale
    matched = [library.call(match_gaussian, parts[:, k], groups) for k in range(2)]
    combined = (matched[0] + 0.25 * matched[1]).astype(float)
    for weighted in (weights.tolist(), library.array(weights)):
        options = {"component_weights": weighted, "decoupled": True}
        got = library.call(gaussian_advantages, parts, groups, task_stage=None, **options)
        np.testing.assert_allclose(got, scale * combined, atol=scale * library.tolerance)
        got = library.call(gaussian_advantages, parts, groups, tasks, **options)
        live = np.isin(groups, groups[combined != 0]) & ~np.isnan(parts).all(axis=1)
        for task in range(3):
            own = (tasks == task) & live
            rms = np.sqrt(np.mean(combined[own] ** 2))
            np.testing.assert_allclose(got[own], combined[own] / rms, atol=9 * library.tolerance)


def test_components_that_cancel_leave_no_signal(library):
    parts = np.asarray([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    groups = np.asarray([0, 0, 1, 1])
    for stage in ("standardize", "match"):
        got = library.call(gaussian_advantages, parts, groups, decoupled=True, task_stage=stage)
        assert np.array_equal(got[:2], [0, 0])
        assert got[3] == -got[2] > 0


def test_an_empty_batch_has_no_advantages(library):
    labels = np.zeros(0, np.int64)
    assert library.call(gaussian_advantages, np.zeros(0), labels, labels).shape == (0,)
    assert library.call(gaussian_advantages, np.zeros((0, 3)), labels).shape == (0,)


def test_groups_with_signal_have_two_different_present_rewards(library, rng):
    rewards, groups, _ = batch(rng)
    rewards[rng.random(len(rewards)) < 0.2] = np.nan
    rewards[rng.random(len(rewards)) < 0.1] = np.inf
    found = library.call(g2rpo.has_signal, rewards, groups)
    kept = rewards.astype(library.dtype)
    for group in np.unique(groups):
        own = kept[groups == group]
        assert set(found[groups == group]) == {len(set(own[~np.isnan(own)])) > 1}
    assert 0 < found.sum() < len(found)
    order = rng.permutation(len(rewards))
    shuffled = library.call(g2rpo.has_signal, rewards[order], groups[order])
    assert np.array_equal(shuffled, found[order])


@pytest.mark.parametrize("members", [1, 4, 40])
def test_consecutive_groups_have_the_signal_of_labelled_ones(library, rng, members):
    rewards = rng.integers(0, 2, 6 * members) / 2
    rewards[:members], rewards[rng.random(len(rewards)) < 0.2] = 0.25, np.nan
    by_number = library.numpy(g2rpo.has_signal(library.array(rewards), members))
    by_label = library.call(g2rpo.has_signal, rewards, np.arange(len(rewards)) // members)
    assert np.array_equal(by_number, by_label)
    assert by_number.any() == (members > 1)


def test_sums_that_differ_by_rounding_only_have_no_signal(library):
    parts = np.asarray([[0.1, 0.2], [0.3, 0.0], [0.2, 0.1], [0.3, 0.01], [0.3, np.nan]])
    groups = np.asarray([0, 0, 1, 1, 0])
    assert library.call(g2rpo.has_signal, parts, groups).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]
    weighted = library.call(g2rpo.has_signal, parts, groups, component_weights=[1.0, 0.0])
    assert weighted.tolist() == [True, True, True, True, True]
    with pytest.raises(ValueError, match="component_weights need rewards of shape"):
        g2rpo.has_signal(library.array(parts[:, 0]), 5, component_weights=[1.0])


def test_an_empty_batch_has_no_signal(library):
    found = library.call(g2rpo.has_signal, np.zeros(0), np.zeros(0, int))
    assert found.shape == (0,)
    assert found.dtype == bool


def test_any_labels_of_tasks_give_the_same_bits(library, rng):
    """Labels from 0 to N - 1 are used as indices; others are sorted first."""
    rewards, groups, tasks = batch(rng)
    expected = library.call(gaussian_advantages, rewards, groups, tasks)
    for other in (5 - tasks, 10**6 * tasks - 7, tasks + len(tasks) - 3):
        assert np.array_equal(library.call(gaussian_advantages, rewards, groups, other), expected)
