"""The quantile against references of higher precision."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from g2rpo._normal import mean_between, quantile, quantile_of_ratio, rounded


def exact_quantile(p: float) -> float:
    """Solve Phi(z) = p to 30 digits."""
    with mpmath.workdps(30):
        p = mpmath.mpf(p)
        return (
            float(mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1))
            if p > 1e-3
            else float(
                mpmath.findroot(
                    lambda z: mpmath.log(mpmath.ncdf(z) / p), -mpmath.sqrt(-2 * mpmath.log(p))
                )
            )
        )


def probabilities() -> np.ndarray:
    return np.concatenate([np.geomspace(1e-12, 0.07, 60), np.linspace(0.07, 0.5, 60)[:-1]])


def test_quantiles_are_exact_to_a_few_units_in_the_last_place(library):
    tails = probabilities().astype(library.dtype)
    expected = np.asarray([exact_quantile(float(p)) for p in tails])
    centres = (tails - np.asarray(0.5, dtype=tails.dtype)).astype(library.dtype)
    # In the centre the argument is `centre`, whose own rounding is not the quantile's error.
    central = np.abs(centres) <= 0.425
    expected[central] = [exact_quantile(float(c) + 0.5) for c in centres[central].astype(float)]
    xp = library.xp
    lower = library.numpy(quantile(xp, library.array(centres), library.array(tails)))
    upper = library.numpy(quantile(xp, library.array(-centres), library.array(tails)))
    allowed = 2e-15 * np.maximum(1, np.abs(expected)) if library.dtype == "float64" else 2e-6
    assert np.all(np.abs(lower - expected) <= allowed)
    assert np.array_equal(lower, -upper)


def test_rounding_changes_nothing_of_normal_size(library, rng):
    values = rng.standard_normal(400) * 10.0 ** rng.integers(-25, 30, 400)
    values = np.concatenate([values, [0.0, 1.0, -1.0, np.inf]]).astype(library.dtype)
    assert np.array_equal(library.numpy(rounded(library.xp, library.array(values))), values)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 511, 512, 100_000])
def test_ranks_have_opposite_quantiles(library, size):
    xp = library.xp
    odd = library.array(2 * np.arange(size) + 1)
    whole = library.array(np.full(size, 2 * size))
    z = library.numpy(quantile_of_ratio(xp, odd, whole, getattr(xp, library.dtype)))
    assert z.dtype == library.dtype
    assert np.array_equal(z, -z[::-1])
    assert np.all(np.diff(z) > 0)
    assert size % 2 == 0 or z[size // 2] == 0


@pytest.mark.parametrize("size", [1, 2, 5, 64, 4096, 1_000_000])
def test_means_of_intervals_are_those_of_high_precision(library, rng, size):
    edges = np.unique(np.concatenate([[0, 1, size - 1, size], rng.integers(0, size + 1, 40)]))
    edges = np.unique(np.concatenate([edges, np.clip(edges + 1, 0, size)]))
    first, stop = (edges[a] for a in np.triu_indices(len(edges), 1))
    if size == 1_000_000:
        keep = (stop - first <= 2) | (stop - first > 1000)
        first, stop = first[keep], stop[keep]
    pick = rng.permutation(len(first))[:60]
    first, stop = first[pick], stop[pick]
    with mpmath.workdps(40):
        density = {}
        for edge in np.unique(np.concatenate([first, stop])):
            p = mpmath.mpf(int(edge)) / size
            inner = 0 < edge < size
            z = mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1) if inner else 0
            density[edge] = mpmath.npdf(z) if inner else mpmath.mpf(0)
        expected = [
            float((density[a] - density[b]) * size / int(b - a))
            for a, b in zip(first, stop, strict=True)
        ]
    xp = library.xp
    arrays = [library.array(a) for a in (first, stop, np.full_like(first, size))]
    mean = library.numpy(mean_between(xp, *arrays, getattr(xp, library.dtype)))
    np.testing.assert_allclose(mean, expected, rtol=0, atol=5e-6 if mean.itemsize == 4 else 2e-13)
    mirrored = [library.array(a) for a in (size - stop, size - first, np.full_like(first, size))]
    assert np.array_equal(
        mean, -library.numpy(mean_between(xp, *mirrored, getattr(xp, library.dtype)))
    )
