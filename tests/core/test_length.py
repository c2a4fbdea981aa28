"""The length reward: its shape, its steps and its infinities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from g2rpo import LengthTarget, gaussian_advantages, length_reward

INF = math.inf


@pytest.mark.parametrize(
    ("target", "lengths", "expected"),
    [
        ((10, 20, 80, 100), [0, 9, 10, 15, 20, 80, 90, 100, 101], [0, 0, 0, 0.5, 1, 1, 0.5, 0, 0]),
        ((10, 10, 80, 80), [9, 10, 80, 81], [0, 1, 1, 0]),
        ((50, 50, 50, 50), [49, 50, 51], [0, 1, 0]),
        ((0, 0, 5, INF), [0, 5, 6, 10**6], [1, 1, 1, 1]),
        ((0, 10, INF, INF), [0, 5, 10, 10**6], [0, 0.5, 1, 1]),
        ((0, 0, 0, 4), [0, 1, 4, 5], [1, 0.75, 0, 0]),
        ((0, 0, 8, 16), [INF, 12], [0, 0.5]),
    ],
)
def test_the_reward_is_a_trapezoid_over_the_length(library, target, lengths, expected):
    lengths = np.asarray(lengths, dtype=float)
    table = np.tile(np.asarray(target, dtype=float), (len(lengths), 1))
    for targets in (LengthTarget(*target), library.array(table), library.array(table[0])):
        with np.errstate(all="raise"):
            got = library.numpy(length_reward(library.array(lengths), targets))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        assert got.dtype == library.dtype


def test_integer_lengths_give_floating_rewards(library):
    lengths = library.xp.asarray([0, 15, 50])
    got = length_reward(lengths, LengthTarget(10, 20, 80, 100))
    assert library.numpy(got).tolist() == [0, 0.5, 1]


def test_only_right_responses_are_ranked(library):
    lengths, right = np.asarray([5.0, 15, 50, 50]), np.asarray([True, True, False, True])
    reward = length_reward(
        library.array(lengths), LengthTarget(10, 20, 80, 100), right=library.array(right)
    )
    got = library.numpy(gaussian_advantages(reward, library.array(np.zeros(4, int))))
    alone = library.call(gaussian_advantages, np.asarray([0, 0.5, 1]), np.zeros(3, int))
    np.testing.assert_allclose(got[right], alone, atol=library.tolerance)
    assert got[2] == 0


@pytest.mark.parametrize(
    "thresholds",
    [
        (5, 4, 6, 7),
        (-1, 0, 1, 2),
        (0, 1, 3, 2),
        (INF, INF, INF, INF),
        (0, INF, INF, INF),
        (0, 1, math.nan, 2),
    ],
)
def test_unordered_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="length target must have 0 <= minimum"):
        LengthTarget(*thresholds)
