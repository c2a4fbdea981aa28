"""Task weights that move the norms of the tasks' gradients towards each other."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from g2rpo import adapt_task_weights, weigh_tasks


def slow_update(norms, weights, present, rate=0.5, low=0.2, high=5.0):
    """The update rule, task by task, with g by bisection."""
    updated = [t for t in range(len(norms)) if present[t] and 0 < norms[t] < math.inf]

    def moved(centre, t):
        return min(max(weights[t] * (centre / norms[t]) ** rate, low), high)

    bottom, top = 1e-30, 1e30
    for _ in range(400):
        centre = math.sqrt(bottom * top)
        product = math.prod(moved(centre, t) / weights[t] for t in updated)
        bottom, top = (centre, top) if product < 1 else (bottom, centre)
    return [moved(centre, t) if t in updated else weights[t] for t in range(len(norms))]


def test_an_update_is_that_of_a_loop(library, rng):
    for _ in range(20):
        norms = np.exp(2 * rng.standard_normal(6))
        norms[rng.integers(6)] = rng.choice([0.0, np.nan, np.inf, -1.0, 1.0])
        weights = rng.choice([0.2, 5.0, 0.7, 1.0, 3.1], 6)
        present = rng.random(6) < 0.8
        arrays = [library.array(x) for x in (norms, weights)]
        found = adapt_task_weights(*arrays, present=library.array(present))
        expected = slow_update(norms.tolist(), weights.tolist(), present)
        np.testing.assert_allclose(library.numpy(found), expected, rtol=20 * library.tolerance)
        assert str(library.numpy(found).dtype) == library.dtype


def test_tasks_without_a_norm_keep_their_weight(library):
    norms = library.array([1.0, 0.0, np.nan, np.inf, 9.0, 4.0, 3.0])
    weights = library.array([1.0, 0.3, 2.0, 4.0, 6.0, 1.0, 0.0])
    present = library.array(np.asarray([True, True, True, True, False, True, True]))
    found = library.numpy(adapt_task_weights(norms, weights, present=present, rate=1.0))
    np.testing.assert_allclose(found, [2.0, 0.3, 2.0, 4.0, 6.0, 0.5, 0.0], rtol=1e-6)
    norms_of_nobody = library.array(np.zeros(7))
    same = library.numpy(adapt_task_weights(norms_of_nobody, weights))
    assert np.array_equal(same, library.numpy(weights))


def test_a_norm_that_is_rounding_is_no_measurement(library):
    weights = library.call(adapt_task_weights, np.asarray([1.0, 4.0, 5e-20]), np.ones(3))
    np.testing.assert_allclose(weights, [2**0.5, 0.5**0.5, 1.0], rtol=1e-6)


def test_norms_that_are_proportional_to_weights_become_equal():
    bare, weights = np.asarray([1.0, 2.0, 5.0, 0.5]), np.ones(4)
    spread = []
    assert np.allclose(adapt_task_weights(bare, weights), (5**0.25 / bare) ** 0.5)
    for _ in range(12):
        norms = bare * weights
        spread.append(norms.max() / norms.min())
        weights = adapt_task_weights(norms, weights)
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 1.01
    assert weights.prod() == pytest.approx(1)


def test_a_task_at_its_bound_does_not_move_the_others_to_theirs():
    bare, weights = np.asarray([1e-4, 1.0, 2.0, 3.0]), np.ones(4)
    for _ in range(60):
        weights = adapt_task_weights(bare * weights, weights)
        assert weights.prod() == pytest.approx(1)
    assert weights[0] == 5
    norms = (bare * weights)[1:]
    np.testing.assert_allclose(norms / norms[0], 1)


def test_weights_never_leave_their_bounds(rng):
    weights = np.ones(5)
    for _ in range(50):
        norms = np.exp(5 * rng.standard_normal(5))
        weights = adapt_task_weights(norms, weights, rate=1.0, low=0.5, high=2.0)
        assert weights.min() >= 0.5
        assert weights.max() <= 2.0


def test_the_weights_are_the_whole_state(rng):
    norms, weights = np.exp(rng.standard_normal((3, 4))), np.ones(4)
    for row in norms:
        weights = adapt_task_weights(row, np.asarray(json.loads(json.dumps(weights.tolist()))))
    once = np.ones(4)
    for row in norms:
        once = adapt_task_weights(row, once)
    assert np.array_equal(weights, once)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, r"rate must be at most 1, got 1\.5"),
        ({"rate": 0.0}, "rate must be finite and positive"),
        ({"low": 0.0}, "bounds must have 0 < low <= 1 <= high, got low=0.0, high=5.0"),
        ({"high": 0.5}, "bounds must have 0 < low <= 1 <= high, got low=0.2, high=0.5"),
        ({"present": np.ones(3, dtype=bool)}, r"present must have shape \(2,\), got \(3,\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        adapt_task_weights(np.ones(2), np.ones(2), **options)


def test_advantages_are_multiplied_by_the_weight_of_their_task(library):
    advantages, tasks = np.asarray([1.0, -2.0, 3.0, np.nan, 5.0, 6.0]), [0, 2, 1, 0, -1, 3]
    weights = library.array(np.asarray([0.5, 0.0, 4.0]))
    found = library.numpy(weigh_tasks(library.array(advantages), library.array(tasks), weights))
    assert str(found.dtype) == library.dtype
    # Labels without a weight belong to no task.
    np.testing.assert_array_equal(found, [0.5, -8.0, 0.0, np.nan, 5.0, 6.0])
    narrow = library.array(np.asarray(tasks, np.int8))
    again = weigh_tasks(library.array(advantages), narrow, weights)
    np.testing.assert_array_equal(library.numpy(again), found)
