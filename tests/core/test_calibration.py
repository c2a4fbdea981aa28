"""Length targets by task, and their calibration from the lengths of right responses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from g2rpo import (
    LengthTarget,
    LengthTargets,
    calibrate_lengths,
    length_quantiles,
    length_reward,
)


def test_a_table_of_targets_is_indexed_by_task_labels(library):
    targets = LengthTargets({"maths": LengthTarget(1, 2, 3, 4)}, default=LengthTarget(0, 0, 9, 9))
    table = targets.table(["ocr", "maths"])
    assert table.tolist() == [[0, 0, 9, 9], [1, 2, 3, 4]]
    codes = np.asarray([1, 0, 1])
    rewards = length_reward(library.array([3.0, 9.0, 1.5]), library.array(table[codes]))
    assert library.numpy(rewards).tolist() == [1, 1, 0.5]


def test_presets_scale_with_the_longest_completion():
    targets = LengthTargets.presets(reasoning=["maths"], direct=["ocr"], max_completion_length=64)
    assert targets["maths"].thresholds == (1, 4, 32, 64)
    assert targets["ocr"].thresholds == (0, 0, 2, 8)
    assert targets["unknown"].thresholds == (0, 0, math.inf, math.inf)
    with pytest.raises(ValueError, match="both have ocr"):
        LengthTargets.presets(reasoning=["ocr"], direct=["ocr"])
    with pytest.raises(ValueError, match="at least 1 token"):
        LengthTarget.direct(0)
    with pytest.raises(TypeError, match="target of 'ocr' must be a LengthTarget, got tuple"):
        LengthTargets({"ocr": (1, 2, 3, 4)})


def test_targets_keep_a_copy_of_their_mapping():
    given = {"ocr": LengthTarget(1, 2, 3, 4)}
    targets = LengthTargets(given)
    given.clear()
    assert targets["ocr"].low == 2
    with pytest.raises(TypeError):
        targets.by_task["ocr"] = LengthTarget(0, 0, 1, 1)


QUANTILES = (0.1, 0.3, 0.6, 0.95)


def test_quantiles_of_right_responses_are_those_of_numpy(library, rng):
    lengths = rng.integers(1, 500, 200)
    right, tasks = rng.random(200) < 0.5, rng.choice([0, 1, 3, 7, -2], 200)
    right[tasks == 3] = False
    thresholds, samples = length_quantiles(
        *map(library.array, (lengths.astype(float), right, tasks)), 5, quantiles=QUANTILES
    )
    for task in range(5):
        own = lengths[(tasks == task) & right]
        assert int(samples[task]) == len(own)
        expected = np.quantile(own, QUANTILES) if len(own) else np.zeros(4)
        np.testing.assert_allclose(library.numpy(thresholds)[task], expected, rtol=1e-5)


def test_updates_are_bounded_ordered_and_converge(library, rng):
    start = np.asarray([[0.0, 10, 50, 100], [5, 5, 5, np.inf], [1, 2, 3, 4]])
    state = library.array(start)
    lengths = library.array(rng.integers(200, 300, 400).astype(float))
    tasks = library.array(np.repeat([0, 1], 200))
    right = library.array(np.ones(400, bool))
    for _ in range(150):
        before = library.numpy(state)
        state = calibrate_lengths(state, lengths, right, tasks, decay=0.5)
        after = library.numpy(state)
        assert np.all(np.diff(after, axis=1) >= 0)
        finite = np.isfinite(before)
        moved = np.abs(after[finite] - before[finite])
        assert np.all(moved <= np.maximum(1, 0.1 * before[finite]) * (1 + 1e-5))
    expected, _ = length_quantiles(lengths, right, tasks, 2)
    np.testing.assert_allclose(after[0], library.numpy(expected)[0], rtol=1e-4)
    assert after[1, 3] == np.inf
    assert after[2].tolist() == [1, 2, 3, 4]


def test_few_samples_change_nothing(library):
    state = library.array([[0.0, 10.0, 50.0, 100.0]])
    lengths, tasks = library.array(np.full(7, 999.0)), library.array(np.zeros(7, int))
    right = library.array(np.ones(7, bool))
    after = calibrate_lengths(state, lengths, right, tasks)
    assert library.numpy(after).tolist() == [[0, 10, 50, 100]]
    nothing = calibrate_lengths(state, lengths[:0], right[:0], tasks[:0])
    assert library.numpy(nothing).tolist() == [[0, 10, 50, 100]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiles": (0.1, 0.2, 0.3)}, "four increasing numbers"),
        ({"quantiles": (0.5, 0.4, 0.6, 0.7)}, "four increasing numbers"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"max_change": -1}, r"max_change must be in \[0, 1\], got -1"),
        ({"min_samples": 0}, "min_samples must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    state = np.zeros((1, 4))
    with pytest.raises(ValueError, match=message):
        calibrate_lengths(state, np.ones(3), np.ones(3, bool), np.zeros(3, int), **options)


def test_a_task_without_thresholds_gets_those_of_its_first_batch(library):
    xp = library.xp
    nan = float("nan")
    state = xp.asarray([[nan] * 4, [nan] * 4, [0.0, 10.0, 20.0, 30.0]])
    lengths = xp.asarray([*range(9), 7])
    tasks = xp.asarray([0] * 9 + [1])
    updated = calibrate_lengths(state, lengths, lengths >= 0, tasks, quantiles=(0, 0.25, 0.75, 1))
    rows = library.numpy(updated)
    assert rows[0].tolist() == [0, 2, 6, 8]
    assert np.isnan(rows[1]).all()
    assert rows[2].tolist() == [0, 10, 20, 30]
