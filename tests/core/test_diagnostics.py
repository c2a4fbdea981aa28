"""Diagnostics against integrals and samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kurtosis, norm, skew

from g2rpo import ESTIMATORS
from g2rpo.diagnostics import equity, normality, outlier_influence, squared_shares


def distance(values, order):
    """Integrate the difference of the quantile functions, interval by interval."""
    values, n = np.sort(values), len(values)
    pieces = [
        quad(lambda u, x=x: abs(x - norm.ppf(u)) ** order, i / n, (i + 1) / n, limit=200)[0]
        for i, x in enumerate(values)
    ]
    return sum(pieces) ** (1 / order)


@pytest.mark.parametrize("kind", ["gaussian", "shifted", "binary", "constant", "single"])
def test_normality_is_that_of_numerical_integration(library, rng, kind):
    values = {
        "gaussian": rng.standard_normal(12),
        "shifted": 3 + 0.1 * rng.standard_normal(9),
        "binary": np.asarray([-1.0, -1, -1, 1, 1]),
        "constant": np.full(4, 0.25),
        "single": np.asarray([-1.5]),
    }[kind].astype(library.dtype)
    noisy = np.concatenate([values, [np.nan, 9.0, 8.0]])
    tasks = np.asarray([4] * (len(values) + 1) + [2, 2])
    result = normality(library.array(noisy), library.array(tasks))
    assert list(result) == [2, 4]
    got, values = result[4], values.astype(float)
    assert got.samples == len(values)
    assert got.w1 == pytest.approx(distance(values, 1), abs=1e-6)
    assert got.w2 == pytest.approx(distance(values, 2), abs=1e-6)
    assert got.mean == pytest.approx(values.mean())
    assert got.variance == pytest.approx(values.var())
    if values.var() > 0:
        assert got.skewness == pytest.approx(skew(values), abs=1e-9)
        assert got.kurtosis == pytest.approx(kurtosis(values, fisher=False))
    else:
        assert math.isnan(got.skewness)
        assert math.isnan(got.kurtosis)


def test_normality_needs_no_name_that_numpy_1_lacks(monkeypatch, rng):
    values = rng.normal(size=9)
    expected = normality(values)
    for name in ("astype", "concat", "permute_dims", "pow", "isdtype"):
        monkeypatch.delattr(np, name, raising=False)
    assert normality(values) == expected


def test_an_empty_batch_has_no_normality(library):
    assert normality(library.array(np.zeros(0))) == {}


def test_squared_shares_sum_to_1_and_equity_is_the_largest_ratio(library):
    advantages, tasks = library.array([1.0, -1, 3, -3, np.nan]), library.array([5, 5, 9, 9, 9])
    assert squared_shares(advantages, tasks) == {5: 0.1, 9: 0.9}
    assert squared_shares(library.array([0.0]), library.array([1])) == {1: 0.0}
    assert equity(library.array([1.0, 4.0, np.nan])) == 4
    assert equity({"a": 0.0, "b": 1.0}) == math.inf
    assert equity({}) == equity(np.zeros(3)) == 1
    with pytest.raises(ValueError, match="per_task_norms must be non-negative, got -1"):
        equity({"a": -1.0})


def test_an_outlier_changes_linear_estimators_only(library, rng):
    rewards, groups = rng.random(24), np.repeat(np.arange(6), 4)
    tasks = groups % 2
    arrays = [library.array(x) for x in (rewards, groups, tasks)]
    quiet = outlier_influence(ESTIMATORS["gaussian"], *arrays)
    assert quiet == (0, 0, 0)
    loud = outlier_influence(ESTIMATORS["grpo"], *arrays)
    assert loud.group > 0.1
    assert loud.task == loud.elsewhere == 0
    everywhere = outlier_influence(ESTIMATORS["grpo-batch"], *arrays)
    assert min(everywhere) > 0.1
    of_task = outlier_influence(ESTIMATORS["ema-grpo"], *arrays, magnitude=100)
    assert of_task.task > 0.1
    assert of_task.elsewhere == 0
    lowest = outlier_influence(ESTIMATORS["gaussian"], *arrays, index=int(np.argmin(rewards)))
    assert lowest.group > 0.1


def test_influence_needs_a_finite_reward():
    with pytest.raises(ValueError, match="rewards must hold a finite value"):
        outlier_influence(ESTIMATORS["grpo"], np.asarray([np.inf]), np.zeros(1, int))
