"""The running scale of one group at a time, by itself."""

from __future__ import annotations

import numpy as np
import pytest

import g2rpo
from g2rpo_tunix import RunningScale

GROUP = np.zeros(8, dtype=int)


def draw(rng, task):
    return (rng.random(8) < 0.3).astype(float) if task else rng.standard_normal(8)


def test_the_advantages_are_the_matched_ones_over_the_running_deviation():
    rng, scale, square = np.random.default_rng(0), RunningScale(("a", "b"), decay=0.9), [None, None]
    for step in range(40):
        task = step % 2
        rewards = draw(rng, task)
        z = g2rpo.gaussian_advantages(rewards, GROUP, task_stage=None)
        advantages = scale(rewards, GROUP, np.full(8, task))
        if not z.any():
            assert (advantages == 0).all()
            continue
        now = np.mean(z**2)
        square[task] = now if square[task] is None else 0.9 * square[task] + 0.1 * now
        np.testing.assert_allclose(advantages, z / np.sqrt(square[task]), rtol=1e-12)
        assert abs(advantages.sum()) < 1e-12
    np.testing.assert_allclose(list(scale.deviations.values()), np.sqrt(square))


def test_every_task_has_variance_one_in_the_long_run():
    rng, scale = np.random.default_rng(1), RunningScale(("a", "b"))
    seen = [[], []]
    for step in range(2000):
        advantages = scale(draw(rng, step % 2), GROUP, np.full(8, step % 2))
        if step > 400 and advantages.any():
            seen[step % 2].append(np.mean(advantages**2))
    for squares in seen:
        assert abs(np.mean(squares) - 1) < 0.05


def test_groups_without_signal_leave_the_scale_alone():
    scale = RunningScale()
    scale(np.arange(8.0), GROUP)
    before = scale.state_dict()
    for rewards in (np.ones(8), np.full(8, np.nan), np.full(8, np.inf)):
        assert (scale(rewards, GROUP) == 0).all()
    assert scale.state_dict() == before


def test_evaluation_leaves_the_scale_alone():
    scale = RunningScale()
    scale(np.arange(8.0), GROUP)
    before = scale.state_dict()
    scale(np.asarray([0.0] * 7 + [1.0]), GROUP, update=False)
    assert scale.state_dict() == before


def test_absent_and_infinite_rewards():
    scale = RunningScale()
    advantages = scale(np.asarray([np.nan, np.inf, 1.0, -np.inf, 0, 0, 0, 0]), GROUP)
    assert np.isfinite(advantages).all()
    assert advantages[0] == 0
    assert advantages[1] == advantages.max() > 0


def test_several_groups_at_once():
    rng, scale = np.random.default_rng(2), RunningScale(("a", "b"))
    rewards = rng.standard_normal(16)
    groups, tasks = np.arange(2).repeat(8), np.arange(2).repeat(8)
    advantages = scale(rewards, groups, tasks)
    np.testing.assert_allclose(
        advantages, g2rpo.gaussian_advantages(rewards, groups, tasks), rtol=1e-12
    )


def test_the_state_comes_back():
    rng, one = np.random.default_rng(3), RunningScale(("a", "b"))
    one(draw(rng, 0), GROUP, np.zeros(8, dtype=int))
    other = RunningScale(("a", "b"))
    other.load_state_dict(one.state_dict())
    rewards = draw(rng, 0)
    tasks = np.zeros(8, dtype=int)
    np.testing.assert_array_equal(one(rewards, GROUP, tasks), other(rewards, GROUP, tasks))
    with pytest.raises(ValueError, match="must be that of the tasks"):
        RunningScale(("a",)).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="got no state"):
        RunningScale().load_state_dict({})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"decay": 2}, ValueError, r"decay must be in \[0, 1\], got 2"),
        ({"minimum": 0}, ValueError, "minimum"),
        ({"ties": "mean"}, ValueError, "ties"),
        ({"task_stage": "match"}, ValueError, "task_stage must be left out"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_wrong_options_are_refused_at_once(options, error, match):
    with pytest.raises(error, match=match):
        RunningScale(**options)
