"""REINFORCE++, OPO and pass@k training: properties from their papers, and edge cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo import (
    grpo_advantages,
    opo_advantages,
    pass_at_k_advantages,
    reinforce_plus_plus_advantages,
)


def of_all_subsets(rewards, k):
    """Score every subset by its best reward; a response gets the mean of its subsets' scores."""
    subsets = list(itertools.combinations(range(len(rewards)), k))
    best = np.asarray([max(rewards[i] for i in subset) for subset in subsets])
    scores = (best - best.mean()) / (best.std() or 1.0)
    return [
        np.mean([s for subset, s in zip(subsets, scores, strict=True) if i in subset])
        for i in range(len(rewards))
    ]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_subsets(library, k):
    rows = [[1.0] * right + [0.0] * (7 - right) for right in range(8)]
    wanted = np.concatenate([of_all_subsets(row, k) for row in rows])
    groups = np.repeat(np.arange(8), 7)
    found = library.call(pass_at_k_advantages, np.concatenate(rows), groups, k=k)
    np.testing.assert_allclose(found, wanted, atol=20 * library.tolerance)
    assert (found[wanted == 0] == 0).all()


def test_pass_at_1_is_grpo_with_the_populations_deviation(library, rng):
    rewards, groups = rng.integers(0, 2, 80).astype(float), np.arange(80) // 8
    rewards[:8] = 1.0
    plain = library.call(grpo_advantages, rewards, groups, epsilon=0.0)
    found = library.call(pass_at_k_advantages, rewards, groups, k=1)
    np.testing.assert_allclose(found, plain * math.sqrt(8 / 7), atol=20 * library.tolerance)


@pytest.mark.parametrize(("size", "k"), [(512, 2), (512, 100), (4096, 4), (4096, 4095)])
def test_pass_at_k_of_large_groups_loses_no_digits(library, size, k):
    right = 1
    rewards = np.zeros(size)
    rewards[:right] = 1.0
    found = library.call(pass_at_k_advantages, rewards, np.zeros(size, int), k=k)
    share = k / size  # a subset holds the one right response
    assert found[0] == pytest.approx(math.sqrt((1 - share) / share), rel=2000 * library.tolerance)
    assert found[1] == pytest.approx(-found[0] / (size - 1), rel=1e-5)


def test_pass_at_k_compares_rewards_with_the_threshold(library):
    rewards = np.asarray([0.5, 0.75, -math.inf, math.inf, math.nan, 0.0])
    groups = np.zeros(6, int)
    sides = np.asarray([0.0, 1.0, 0.0, 1.0, math.nan, 0.0])
    for threshold, binary in ((0.5, sides), (0.8, np.where(sides == 1, [0, 0, 0, 1, 0, 0], sides))):
        found = library.call(pass_at_k_advantages, rewards, groups, k=2, threshold=threshold)
        assert np.array_equal(found, library.call(pass_at_k_advantages, binary, groups, k=2))
        assert found[4] == 0
        assert found[3] > 0 > found[0]


def test_a_group_of_k_or_fewer_has_pass_at_k_advantages_of_0(library):
    rewards, groups = np.asarray([1.0, 0, 0, 0, 1, 0, 1]), np.asarray([0, 0, 0, 0, 1, 1, 2])
    assert (library.call(pass_at_k_advantages, rewards, groups, k=4) == 0).all()
    found = library.call(pass_at_k_advantages, rewards, groups, k=3)
    assert (found[4:] == 0).all()
    assert (found[:4] != 0).all()


@given(
    st.lists(st.tuples(st.integers(-8, 8), st.integers(1, 60)), min_size=1, max_size=12),
)
def test_opo_has_the_least_variance_of_all_baselines(responses):
    """The gradient's second moment is the sum of squared length (R - b)², as the paper has it."""
    rewards, lengths = (np.asarray(x) for x in zip(*responses, strict=True))
    found = opo_advantages(rewards.astype(float), np.zeros_like(lengths), lengths=lengths)
    best = np.sum(lengths * found**2)
    for shift in (-0.1, 0.01, 1.0):
        assert best <= np.sum(lengths * (found + shift) ** 2)
    assert np.sum(lengths * found) == pytest.approx(0, abs=1e-9)


def test_opo_of_equal_lengths_subtracts_the_mean(library, rng):
    rewards, groups = rng.random(40), np.arange(40) % 6
    plain = library.call(grpo_advantages, rewards, groups, scale="none")
    for length in (1, 37, 0):
        lengths = library.array(np.full(40, length))
        found = library.call(opo_advantages, rewards, groups, lengths=lengths)
        np.testing.assert_allclose(found, plain, atol=5 * library.tolerance)


def test_opo_with_zero_absent_and_infinite_values(library):
    rewards = np.asarray([0.0, 1.0, 1.0, 0.3, 0.3, 2.0, math.nan, 1.0, 0.0, 1.0, 0.0, math.inf])
    groups = np.asarray([0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 5])
    lengths = np.asarray([30.0, 10, 0, 5, 9, 7, -4, 1, 1, math.nan, 2, 6])
    found = library.call(opo_advantages, rewards, groups, lengths=library.array(lengths))
    # A response without tokens has an advantage, and no say in the baseline.
    np.testing.assert_allclose(found[:3], [-0.25, 0.75, 0.75], atol=library.tolerance)
    assert (found[3:7] == 0).all()
    np.testing.assert_allclose(found[7:9], [0.5, -0.5], atol=library.tolerance)
    assert np.isnan(found[9:]).all()


def test_opo_of_the_largest_rewards_is_finite(library):
    big = float(np.finfo(library.dtype).max) / 2
    found = library.call(
        opo_advantages,
        np.asarray([big, -big, big]),
        np.zeros(3, int),
        lengths=library.array([1, 2, 1]),
    )
    np.testing.assert_allclose(found / big, [1, -1, 1], rtol=1e-6)


@pytest.mark.parametrize("group_baseline", [False, True])
def test_reinforce_plus_plus_has_mean_0_and_deviation_1(library, rng, group_baseline):
    groups = np.arange(60) // 6
    rewards = 100 * rng.random(60) + 50 * groups
    found = library.call(
        reinforce_plus_plus_advantages, rewards, groups, group_baseline=group_baseline
    ).astype(np.float64)
    assert found.mean() == pytest.approx(0, abs=1e-6)
    assert found.std(ddof=1) == pytest.approx(1, rel=1e-5)
    centred = rewards - rewards.reshape(10, 6).mean(axis=1).repeat(6) * group_baseline
    score = (centred - centred.mean()) / centred.std(ddof=1)
    np.testing.assert_allclose(found, score, atol=20 * library.tolerance)


def test_reinforce_plus_plus_with_equal_absent_and_infinite_rewards(library):
    groups = np.asarray([0, 0, 1, 1, 2, 3])
    for rewards in (np.full(6, 0.1), np.asarray([0.1, *[math.nan] * 5])):
        for baseline in (False, True):
            found = library.call(
                reinforce_plus_plus_advantages, rewards, groups, group_baseline=baseline
            )
            assert (found == 0).all()
    rewards = np.asarray([0.0, math.inf, 0.0, 1.0, 3.0, math.nan])
    found = library.call(reinforce_plus_plus_advantages, rewards, groups)
    assert np.isnan(found[:5]).all()
    assert found[5] == 0
    found = library.call(reinforce_plus_plus_advantages, rewards, groups, group_baseline=True)
    assert np.isnan(found[:2]).all()
    # The single response has no distance from its group's mean, but counts in the deviation.
    np.testing.assert_allclose(found[2:], [-1, 1, 0, 0], atol=1e-5)


def test_reinforce_plus_plus_with_baseline_of_the_largest_rewards_is_finite(library):
    big = float(np.finfo(library.dtype).max)
    found = library.call(
        reinforce_plus_plus_advantages,
        np.asarray([big, -big, -big, big, 0.0, 1.0]),
        np.asarray([0, 0, 0, 0, 1, 1]),
        group_baseline=True,
    )
    assert np.isfinite(found).all()
    assert found[0] == -found[1] == found[3] > 0.9


def test_order_does_not_change_a_bit(library, rng):
    rewards, groups = rng.random(90), rng.integers(0, 12, 90)
    lengths, order = rng.integers(0, 40, 90), rng.permutation(90)
    for function, options in (
        (reinforce_plus_plus_advantages, {}),
        (reinforce_plus_plus_advantages, {"group_baseline": True}),
        (pass_at_k_advantages, {"k": 3}),
    ):
        before = library.call(function, rewards, groups, **options)
        after = library.call(function, rewards[order], groups[order], **options)
        assert np.array_equal(after, before[order])
    before = library.call(opo_advantages, rewards, groups, lengths=library.array(lengths))
    after = library.call(
        opo_advantages, rewards[order], groups[order], lengths=library.array(lengths[order])
    )
    assert np.array_equal(after, before[order])
