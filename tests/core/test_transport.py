"""Gaussian matching: values of the paper, and cases that floating-point running sums get wrong."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from g2rpo import match_gaussian

FIGURE = [
    ([0, 0, 0, 0, 1], [-0.3204, -0.3204, -0.3204, -0.3204, 1.2816]),
    ([0, 0, 1, 1, 1], [-0.9030, -0.9030, 0.6020, 0.6020, 0.6020]),
    ([0.1, 0.1, 0.1, 0.2, 1], [-0.6020, -0.6020, -0.6020, 0.5244, 1.2816]),
    ([0.81, 0.81, 0.82, 0.82, 0.83], [-0.9030, -0.9030, 0.2622, 0.2622, 1.2816]),
]
OF_EIGHT = {1: (1.534, -0.219), 2: (1.211, -0.404), 3: (0.970, -0.582), 4: (0.767, -0.767)}


@pytest.mark.parametrize(("rewards", "expected"), FIGURE)
def test_matched_values_are_those_of_the_papers_figure(library, rewards, expected):
    assert np.array_equal(
        library.call(match_gaussian, np.asarray(rewards, float)).round(4),
        np.asarray(expected, library.dtype),
    )


@pytest.mark.parametrize("right", range(1, 8))
def test_matched_values_of_binary_groups_of_eight_are_those_of_the_paper(library, right):
    rewards = np.asarray([1.0] * right + [0.0] * (8 - right))
    matched = library.call(match_gaussian, rewards)
    up, down = OF_EIGHT[min(right, 8 - right)]
    if right > 4:
        up, down = -down, -up
    np.testing.assert_allclose(matched, np.where(rewards > 0, up, down), atol=6e-4)


def test_moments_without_ties_are_those_of_the_paper(library, rng):
    sizes = [2, 4, 8, 16, 64, 512]
    mean_square = [0.455, 0.712, 0.851, 0.924, 0.980, 0.9975]
    largest = [0.67, 1.15, 1.53, 1.86, 2.42, 3.10]
    values = np.concatenate([rng.permutation(n).astype(float) for n in sizes])
    segments = np.repeat(np.arange(6), sizes)
    matched = library.call(match_gaussian, values, segments)
    own = [matched[segments == k] for k in range(6)]
    np.testing.assert_allclose([np.mean(z**2) for z in own], mean_square, atol=6e-4)
    np.testing.assert_allclose([np.max(z) for z in own], largest, atol=6e-3)
    np.testing.assert_allclose([np.sum(z) for z in own], 0, atol=50 * library.tolerance)


def mixed_blocks(rng, count):
    """Segments of random sizes, each with blocks of random sizes, in a random order."""
    values, segments, pattern = [], [], []
    for segment in range(count):
        size = int(rng.integers(1, 12))
        levels = rng.integers(0, int(rng.integers(1, 5)), size)
        values.append(levels * float(rng.uniform(0.1, 9)))
        segments.append(np.full(size, segment))
        ranks = tuple(sorted(np.unique(levels, return_counts=True)[1].cumsum().tolist()))
        pattern += [(size, ranks, int(np.searchsorted(np.unique(levels), v))) for v in levels]
    shuffle = rng.permutation(len(pattern))
    pattern = [pattern[i] for i in shuffle]
    return np.concatenate(values)[shuffle], np.concatenate(segments)[shuffle], pattern


@pytest.mark.parametrize("ties", ["midpoint", "barycentre"])
def test_equal_blocks_are_bit_equal_everywhere(library, rng, ties):
    values, segments, pattern = mixed_blocks(rng, 1500)
    matched = library.call(match_gaussian, values, segments, ties=ties)
    seen = {}
    for key, value in zip(pattern, matched.tolist(), strict=True):
        assert seen.setdefault(key, value) == value, key
    assert len(seen) > 100


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_million_values_in_single_precision_are_exact(name):
    xp = import_module("jax.numpy" if name == "jax" else name)
    rng = np.random.default_rng(5)
    sizes = rng.choice([7, 8, 9, 64], size=45_454)
    segments = np.repeat(np.arange(len(sizes)), sizes)
    of = np.repeat(sizes, sizes)
    within = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    right = within < np.repeat(rng.integers(0, sizes + 1), sizes)
    arrays = [xp.asarray(a) for a in (right.astype(np.float32), segments.astype(np.int32))]
    matched = np.asarray(match_gaussian(*arrays))
    assert matched.dtype == np.float32
    k = np.repeat(np.add.reduceat(right, np.cumsum(sizes) - sizes), sizes)
    key = (of * 100 + k) * 2 + right
    _, inverse = np.unique(key, return_inverse=True)
    lowest = np.full(inverse.max() + 1, np.inf, np.float32)
    np.minimum.at(lowest, inverse, matched)
    assert np.array_equal(matched, lowest[inverse])
    assert np.all(matched[(k == 0) | (k == of)] == 0)


@pytest.mark.parametrize("ties", ["midpoint", "barycentre"])
def test_negation_is_exact(library, rng, ties):
    values, segments, _ = mixed_blocks(rng, 200)
    matched = library.call(match_gaussian, values, segments, ties=ties)
    assert np.array_equal(library.call(match_gaussian, -values, segments, ties=ties), -matched)


def test_symmetric_blocks_are_exactly_zero(library):
    matched = library.call(match_gaussian, np.asarray([-3.0, 1, 1, 1, 1, 7]))
    assert np.array_equal(matched[1:5], np.zeros(4))
    assert matched[0] == -matched[5] != 0


def test_order_of_the_input_does_not_matter(library, rng):
    values, segments, _ = mixed_blocks(rng, 100)
    shuffle = rng.permutation(len(values))
    matched = library.call(match_gaussian, values, segments)
    assert np.array_equal(
        library.call(match_gaussian, values[shuffle], segments[shuffle]), matched[shuffle]
    )


def test_labels_of_any_value_and_width(library):
    values = np.asarray([1.0, 2, 3, 4])
    expected = library.call(match_gaussian, values, np.asarray([0, 1, 0, 1]))
    for labels in ([-(2**31), 2**31 - 1] * 2, [7, -7] * 2):
        assert np.array_equal(
            library.call(match_gaussian, values, np.asarray(labels, np.int32)), expected
        )
    assert np.array_equal(
        library.call(match_gaussian, values, np.asarray([250, 3] * 2, np.uint8)), expected
    )


def test_absent_values_take_no_rank(library):
    values = np.asarray([np.nan, 0.0, 1.0, np.inf, np.nan, -np.inf, np.inf])
    matched = library.call(match_gaussian, values)
    alone = library.call(match_gaussian, values[~np.isnan(values)])
    assert np.array_equal(matched[~np.isnan(values)], alone)
    assert np.array_equal(matched[np.isnan(values)], [0, 0])


def test_constant_absent_and_empty_segments_get_0(library):
    assert library.call(match_gaussian, np.zeros(0)).shape == (0,)
    for values in ([5.0], [np.nan], [np.nan, np.nan], [np.inf, np.inf], [0.0, -0.0]):
        assert np.array_equal(
            library.call(match_gaussian, np.asarray(values)), np.zeros(len(values))
        )


def test_extreme_magnitudes_are_only_ranks(library):
    big, tiny = np.finfo(library.dtype).max, np.finfo(library.dtype).tiny
    matched = library.call(match_gaussian, np.asarray([-big, -tiny, 0.0, tiny, big]))
    assert np.array_equal(matched, library.call(match_gaussian, np.arange(5.0)))


def test_values_within_the_resolution_are_ties(library):
    values = np.asarray([0.810, 0.811, 0.9, -np.inf, np.finfo(library.dtype).max, np.inf])
    matched = library.call(match_gaussian, values, resolution=0.01)
    assert np.array_equal(matched, library.call(match_gaussian, np.asarray([1.0, 1, 2, 0, 3, 4])))


def test_barycentre_is_the_conditional_mean(library):
    matched = library.call(match_gaussian, np.asarray([0.0, 1.0]), ties="barycentre")
    np.testing.assert_allclose(matched, [-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)], rtol=1e-6)


def test_the_dtype_of_the_result_is_that_of_the_values(library):
    xp = library.xp
    default = xp.asarray(0.5).dtype if library.name != "numpy" else np.dtype("float64")
    for given, expected in (
        (xp.asarray([0, 1], dtype=xp.int32), default),
        (xp.asarray([False, True]), default),
        (library.array([0.0, 1.0]), getattr(xp, library.dtype)),
    ):
        matched = match_gaussian(given)
        assert matched.dtype == expected
        np.testing.assert_allclose(library.numpy(matched), [-0.6745, 0.6745], atol=5e-5)


def test_half_precision_keeps_its_dtype_and_symmetry():
    import jax.numpy as jnp
    import torch

    for xp, dtype in ((np, np.float16), (torch, torch.bfloat16), (jnp, jnp.bfloat16)):
        matched = match_gaussian(xp.asarray([0.0, 2.0, 2.0, 5.0], dtype=dtype))
        assert matched.dtype == dtype
        assert float(matched[0]) == -float(matched[3]) != 0
        assert float(matched[1]) == 0


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_results_do_not_write_to_the_input(name):
    xp = import_module(name)
    values = xp.asarray([3.0, float("nan"), 1.0])
    match_gaussian(values, resolution=1.0)
    assert str(values.tolist()) == "[3.0, nan, 1.0]"
