"""Sums that are equal in exact arithmetic are ties, although computed ones may differ."""

from __future__ import annotations

from fractions import Fraction
from importlib import import_module
from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo import ESTIMATORS, gaussian_advantages, match_gaussian
from g2rpo.testing import oracle

from .conftest import LIBRARIES

STAGES = ["standardize", "match", "match-all", None]
WEIGHTS = [(1.0, 1.0), (0.9, 0.1), (0.5, 0.5), (0.1, 0.05), (0.9, 0.1, 0.5), (0.9, 0.1, 1.0)]


def exact_sums(parts, weights):
    """Return the exact sums of the shortest decimals of the floats, as integers."""
    fractions = [[Fraction(repr(float(x))) for x in row] for row in (*parts, weights)]
    *rows, weights = fractions
    sums = [sum((w * x for w, x in zip(weights, row, strict=True)), Fraction()) for row in rows]
    return np.unique(np.asarray([float(20000 * s) for s in sums]).round(), return_inverse=True)[1]


def grid(step, components):
    levels = np.arange(round(1 / step) + 1) / round(1 / step)
    return np.asarray(list(product(levels, repeat=components)))


def test_sums_that_are_equal_in_exact_arithmetic_are_ties(library):
    parts = np.asarray([[0.1, 0.2], [0.3, 0.0], [0.2, 0.1], [0.0, 0.3]])
    for stage in STAGES:
        found = library.call(gaussian_advantages, parts, np.zeros(4, int), task_stage=stage)
        assert np.array_equal(found, np.zeros(4)), stage


@pytest.mark.parametrize("step", [0.1, 0.05])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_sums_on_a_grid_rank_like_exact_ones(library, weights, step):
    parts = grid(step, len(weights))
    groups = np.zeros(len(parts), int)
    options = {"component_weights": weights, "task_stage": None}
    found = library.call(gaussian_advantages, parts, groups, **options)
    wanted = library.call(match_gaussian, exact_sums(parts, weights).astype(float))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_drawn_sums_of_up_to_six_components_rank_like_exact_ones(dtype):
    tenths = st.integers(-20, 20).map(lambda n: n / 10)
    twentieths = st.integers(0, 40).map(lambda n: n / 20)

    @given(st.data(), st.integers(2, 6), st.sampled_from(STAGES))
    def agrees(data, components, stage):
        weights = data.draw(st.lists(tenths, min_size=components, max_size=components))
        few = st.sampled_from(data.draw(st.lists(twentieths, min_size=2, max_size=4)))
        row = st.lists(few, min_size=components, max_size=components)
        parts = np.asarray(data.draw(st.lists(row, min_size=4, max_size=16)))
        groups = np.arange(len(parts)) // 4
        options = {"component_weights": weights, "task_stage": stage}
        found = gaussian_advantages(parts.astype(dtype), groups, **options)
        wanted = oracle.gaussian_advantages(parts.tolist(), groups.tolist(), **options)
        np.testing.assert_allclose(found, wanted, atol=3e-6 if dtype == "float32" else 1e-12)

    agrees()


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_the_order_of_components_does_not_change_a_bit(library, rng, stage, decoupled):
    parts, groups = rng.random((64, 3)).round(1), np.arange(64) // 8
    weights = np.asarray([0.9, 0.1, 0.5])
    tasks = groups % 2
    results = [
        library.call(
            gaussian_advantages,
            parts[:, order],
            groups,
            tasks,
            component_weights=weights[list(order)].tolist(),
            task_stage=stage,
            decoupled=decoupled,
        )
        for order in permutations(range(3))
    ]
    assert results[0].any()
    for other in results[1:]:
        assert np.array_equal(other, results[0])


@pytest.mark.parametrize("stage", ["match", "match-all"])
def test_decoupled_components_that_change_places_stay_ties(library, rng, stage):
    parts = rng.integers(0, 2, (96, 3)).astype(float)
    groups = np.arange(96) // 8
    options = {"task_stage": stage, "decoupled": True}
    found = library.call(gaussian_advantages, parts, groups, **options)
    for order in permutations(range(3)):
        moved = library.call(gaussian_advantages, parts[:, list(order)], groups, **options)
        assert np.array_equal(moved, found)
    wanted = oracle.gaussian_advantages(parts.tolist(), groups.tolist(), **options)
    np.testing.assert_allclose(found, wanted, atol=3 * library.tolerance)


def test_decoupled_sums_that_differ_by_rounding_only_are_ties(library):
    """.3 z + .6 z and .9 z differ in the last bit."""
    up, flat = np.asarray([0.0, 1.0, 2.0, 5.0]), np.zeros(4)
    one, two = np.stack([up, up, flat], axis=1), np.stack([flat, flat, up], axis=1)
    parts, groups = np.concatenate([one, two]), np.arange(8) // 4
    options = {"component_weights": [0.3, 0.6, 0.9], "decoupled": True}
    found = library.call(gaussian_advantages, parts, groups, task_stage="match", **options)
    assert np.array_equal(found[:4], found[4:])
    assert len(set(found.tolist())) == 4
    cancelling = {"component_weights": [0.1, 0.2, -0.3], "decoupled": True}
    parts = np.stack([up, up, up], axis=1)
    for stage in STAGES:
        found = library.call(
            gaussian_advantages, parts, flat.astype(int), task_stage=stage, **cancelling
        )
        assert np.array_equal(found, flat)


def test_equal_sums_between_two_multiples_of_the_resolution_round_alike(library):
    """.15 / .1 comes out below 1.5, (.1 + .05) / .1 above."""
    parts = np.asarray([[0.15, 0.0], [0.1, 0.05], [0.2, 0.0], [0.0, 0.0]])
    for sign, wanted in ((1, [1, 1, 1, 0]), (-1, [0, 0, 0, 1])):
        found = library.call(
            gaussian_advantages, sign * parts, np.zeros(4, int), resolution=0.1, task_stage=None
        )
        assert np.array_equal(found, library.call(match_gaussian, np.asarray(wanted, float)))


def test_sums_that_differ_by_more_than_rounding_keep_their_order(library):
    step = 1e-5 if library.dtype == "float32" else 1e-12
    fine = 1 + step * np.arange(6.0)
    parts = np.stack([fine[::-1] - 1, np.full(6, 0.5), fine], axis=1)
    options = {"component_weights": [0.1, 1.0, 0.5], "task_stage": None}
    found = library.call(gaussian_advantages, parts, np.zeros(6, int), **options)
    assert np.array_equal(found, library.call(match_gaussian, np.arange(6.0)))


def test_extreme_components_rank_like_extreme_rewards(library):
    big, tiny = np.finfo(library.dtype).max, np.finfo(library.dtype).tiny
    column = np.asarray([-np.inf, -np.inf, -big, -tiny, 0.0, tiny, big, np.inf, np.nan])
    parts = np.stack([column, np.zeros(9)], axis=1)
    apart = np.arange(9)  # each reward beside a zero of the same group, so that sizes do not mix
    rewards = np.concatenate([parts, np.zeros((9, 2))])
    groups = np.concatenate([apart, apart])
    found = library.call(gaussian_advantages, rewards, groups, task_stage=None)
    wanted = library.call(gaussian_advantages, rewards[:, 0], groups, task_stage=None)
    assert np.array_equal(found, wanted)
    whole = library.call(gaussian_advantages, parts, np.zeros(9, int), task_stage=None)
    assert whole[0] == whole[1] < whole[2] < whole[4] < whole[6] < whole[7]


def test_huge_rewards_of_another_prompt_do_not_make_ties(library):
    parts = np.asarray([[0.1, 0.2], [0.4, 0.0], [1e30, 0.0], [-1e30, 1.0]])
    found = library.call(gaussian_advantages, parts, np.asarray([0, 0, 1, 1]), task_stage=None)
    assert found[0] < found[1]


# The array API standard has no half precision.
@pytest.mark.parametrize("name", [name for name in LIBRARIES if name != "array_api_strict"])
def test_equal_sums_in_half_precision_are_ties(name):
    xp = import_module("jax.numpy" if name == "jax" else name)
    parts = xp.asarray([[0.1, 0.2], [0.3, 0.0], [0.5, 0.0]], dtype=xp.float16)
    found = gaussian_advantages(parts, xp.asarray([0, 0, 0]), task_stage=None)
    assert found[0] == found[1] < found[2]


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_sums_under_jit_have_the_ties_of_eager_ones(stage, decoupled):
    parts = grid(0.1, 3).astype(np.float32)
    weights = [0.9, 0.1, 0.5]

    def advantages(parts):
        groups = jnp.arange(parts.shape[0]) % 7
        return gaussian_advantages(
            parts, groups, component_weights=weights, task_stage=stage, decoupled=decoupled
        )

    found = np.asarray(jax.jit(advantages)(jnp.asarray(parts)))
    np.testing.assert_allclose(found, advantages(jnp.asarray(parts)), atol=2e-6)
    if not decoupled:
        groups = np.arange(len(parts)) % 7
        wanted = gaussian_advantages(
            exact_sums(parts.astype(float).round(1), weights).astype(np.float32),
            groups,
            task_stage=stage,
        )
        np.testing.assert_allclose(found, wanted, atol=3e-6)


def test_rewards_without_a_component_are_refused():
    for name in ("gaussian", "grpo", "gdpo"):
        with pytest.raises(ValueError, match="rewards must have at least one component"):
            ESTIMATORS[name](np.zeros((3, 0)), np.zeros(3, int))
