"""Means over prompts: against brute force, SciPy, and simulation."""

import math
import sys
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from g2rpo.estimates import Estimate, best_of, mean_estimate, mean_of_estimates


def test_the_standard_error_is_that_of_the_prompt_means():
    rng = np.random.default_rng(0)
    values = rng.random((12, 5)) + rng.random((12, 1))
    groups = np.repeat(np.arange(12)[::-1], 5)
    means = values.mean(axis=1)
    estimate = mean_estimate(values.ravel(), groups)
    assert estimate.mean == pytest.approx(means.mean())
    assert estimate.standard_error == pytest.approx(stats.sem(means))
    assert (estimate.freedom, estimate.prompts) == (11, 12)
    expected = stats.t.interval(0.9, 11, means.mean(), stats.sem(means))
    assert estimate.interval(0.9) == pytest.approx(expected)


def test_estimates_depend_on_neither_library_nor_order(xp):
    rng = np.random.default_rng(1)
    values, groups = rng.random(30), rng.integers(-3, 3, 30)
    order = rng.permutation(30)
    one = mean_estimate(xp.asarray(values), xp.asarray(groups))
    assert one == pytest.approx(mean_estimate(values[order], groups[order]))
    assert one.prompts == len(np.unique(groups))


def test_absent_values_and_prompts_without_values_are_left_out():
    values = np.asarray([1.0, np.nan, 0.0, 0.5, np.nan, np.nan])
    groups = np.asarray([0, 0, 1, 1, 2, 2])
    estimate = mean_estimate(values, groups)
    assert (estimate.mean, estimate.prompts) == (0.625, 2)
    assert (best_of(values, groups, 2).mean, best_of(values, groups, 2).prompts) == (0.5, 1)


@pytest.mark.parametrize("size", [0, 1])
def test_too_few_prompts_have_no_interval(size):
    estimate = mean_estimate(np.full(size, 0.5), np.zeros(size, int))
    assert estimate.prompts == size
    assert math.isnan(estimate.mean) == (size == 0)
    assert all(math.isnan(end) for end in estimate.interval())


def test_equal_prompts_have_an_interval_without_width():
    estimate = mean_estimate(np.full(6, 0.5), np.repeat(np.arange(3), 2))
    assert estimate.interval() == (0.5, 0.5)


# Percentiles of Student's distribution as tables print them.
@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (7, 2.365), (30, 2.042), (1e9, 1.960)]
)
def test_intervals_are_those_of_student(freedom, expected):
    low, high = Estimate(0.0, 1.0, float(freedom), 9).interval(0.95)
    assert high == -low == pytest.approx(expected, abs=5e-4)


def test_without_scipy_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r'pip install "g2rpo\[cli\]"'):
        Estimate(0.0, 1.0, 3.0, 4).interval()


@pytest.mark.parametrize("confidence", [0, 1, -0.1, 95])
def test_confidence_is_a_probability(confidence):
    with pytest.raises(ValueError, match="confidence"):
        Estimate(0.0, 1.0, 3.0, 4).interval(confidence)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_best_of_is_the_mean_over_all_subsets(k):
    rng = np.random.default_rng(2)
    rewards = rng.choice([0.0, 0.25, 1.0], (5, 6))
    expected = [np.mean([max(subset) for subset in combinations(row, k)]) for row in rewards]
    estimate = best_of(rewards.ravel(), np.repeat(np.arange(5), 6), k)
    assert estimate.mean == pytest.approx(np.mean(expected))
    assert estimate.standard_error == pytest.approx(stats.sem(expected), abs=1e-12)


def test_best_of_binary_rewards_is_pass_at_k():
    n, right, k = 400, 7, 100
    rewards = (np.arange(n) < right).astype(float)
    expected = 1 - math.comb(n - right, k) / math.comb(n, k)
    assert best_of(rewards, np.zeros(n, int), k).mean == pytest.approx(expected)


def test_best_of_leaves_out_prompts_with_fewer_responses():
    assert best_of(np.asarray([0.5, 1.0]), np.zeros(2, int), 3).prompts == 0
    with pytest.raises(ValueError, match="k must be"):
        best_of(np.asarray([0.5]), np.zeros(1, int), 0)


def test_mean_of_tasks_has_the_freedom_of_welch():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1, 8), rng.normal(0, 5, 20)
    parts = [mean_estimate(values, np.arange(len(values))) for values in (first, second)]
    difference = stats.ttest_ind(first, -second, equal_var=False)
    both = mean_of_estimates(parts)
    assert both.mean == pytest.approx((first.mean() + second.mean()) / 2)
    assert both.freedom == pytest.approx(difference.df)
    assert both.mean / both.standard_error == pytest.approx(difference.statistic)


def test_a_mean_over_no_task_is_nan():
    nothing = mean_estimate(np.zeros(0), np.zeros(0, int))
    assert mean_of_estimates([nothing]).prompts == 0
    assert math.isnan(mean_of_estimates([]).mean)
    one = Estimate(0.5, 0.1, 9.0, 10)
    assert mean_of_estimates([nothing, one]) == pytest.approx(one)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_interval_covers_the_mean_with_its_confidence(spread):
    """Prompts of different difficulty: over 95 % of draws hold the mean, and far less without."""
    rng = np.random.default_rng(4)
    draws, prompts, responses = 1000, 10, 8
    difficulty = spread * rng.normal(size=(draws, prompts, 1))
    values = difficulty + rng.normal(size=(draws, prompts, responses))
    groups = np.repeat(np.arange(prompts), responses)
    held = [
        low <= 0 <= high
        for low, high in (mean_estimate(each.ravel(), groups).interval() for each in values)
    ]
    assert 0.93 < np.mean(held) < 0.97
    naive = [stats.t.interval(0.95, 79, each.mean(), stats.sem(each.ravel())) for each in values]
    covered = np.mean([low <= 0 <= high for low, high in naive])
    assert covered > 0.93 if spread == 0 else covered < 0.65
