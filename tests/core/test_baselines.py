"""The baselines against their formulas in plain NumPy, group by group."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from g2rpo import (
    ESTIMATORS,
    EMAState,
    ema_grpo_advantages,
    gaussian_advantages,
    gdpo_advantages,
    grpo_advantages,
    register_estimator,
    rloo_advantages,
)
from g2rpo.advantages import takes_lengths


def batch(rng, prompts=30):
    sizes = rng.choice([1, 2, 5, 8, 8], size=prompts)
    groups = np.repeat(np.arange(prompts), sizes)
    rewards = rng.random(len(groups)) * np.where(groups % 3 == 0, 100, 1)
    rewards = np.where(groups % 5 == 0, 0.3, rewards)
    rewards[::11] = np.nan
    shuffle = rng.permutation(len(groups))
    return rewards[shuffle], groups[shuffle], (groups % 3)[shuffle]


def by_group(function, rewards, groups):
    """Apply ``function`` to the present rewards of every group."""
    out = np.zeros(len(rewards))
    for group in np.unique(groups):
        here = (groups == group) & ~np.isnan(rewards)
        if here.any():
            out[here] = function(rewards[here])
    return out


def grpo(r, epsilon=1e-6):
    return (r - r.mean()) / (r.std(ddof=1) + epsilon) if len(r) > 1 else 0 * r


def close(library, got, expected):
    np.testing.assert_allclose(
        got, expected, atol=30 * library.tolerance, rtol=30 * library.tolerance
    )


def test_grpo_is_the_standard_score_in_the_group(library, rng):
    rewards, groups, _ = batch(rng)
    for epsilon in (1e-6, 1e-4):
        got = library.call(grpo_advantages, rewards, groups, epsilon=epsilon)
        close(library, got, by_group(partial(grpo, epsilon=epsilon), rewards, groups))


def test_dr_grpo_and_batch_scale_change_the_divisor_only(library, rng):
    rewards, groups, _ = batch(rng)
    centred = by_group(lambda r: r - r.mean(), rewards, groups)
    close(library, library.call(grpo_advantages, rewards, groups, scale="none"), centred)
    std = rewards[~np.isnan(rewards)].std(ddof=1)
    got = library.call(grpo_advantages, rewards, groups, scale="batch")
    close(library, got, centred / (std + 1e-6))


def test_rloo_subtracts_the_mean_of_the_other_rollouts(library, rng):
    rewards, groups, _ = batch(rng)

    def leave_one_out(r):
        return r - (r.sum() - r) / (len(r) - 1) if len(r) > 1 else 0 * r

    close(
        library,
        library.call(rloo_advantages, rewards, groups),
        by_group(leave_one_out, rewards, groups),
    )


def test_gdpo_standardises_components_and_then_their_sum(library, rng):
    rewards, groups, _ = batch(rng)
    parts = np.stack([np.nan_to_num(rewards), 9 * rng.random(len(rewards))], axis=1)
    weights = [1.0, 0.3]
    total = sum(w * by_group(grpo, parts[:, k], groups) for k, w in enumerate(weights))
    expected = (total - total.mean()) / (total.std(ddof=1) + 1e-6)
    close(
        library, library.call(gdpo_advantages, parts, groups, component_weights=weights), expected
    )


def test_groups_without_signal_are_exactly_zero(library):
    rewards = np.asarray([0.1, 0.1, 0.1, 7.3, 1e30, 1e30, 0.2, 0.9])
    groups = np.asarray([0, 0, 0, 1, 2, 2, 3, 3])
    for options in ({}, {"scale": "batch"}, {"scale": "none"}, {"epsilon": 0.0}):
        got = library.call(grpo_advantages, rewards, groups, **options)
        assert np.array_equal(got[:6], np.zeros(6))
        assert got[7] == pytest.approx(-got[6], rel=1e-6)
    assert np.array_equal(library.call(rloo_advantages, rewards, groups)[:6], np.zeros(6))


def test_extreme_rewards_change_no_other_group(library, rng):
    rewards, groups, _ = batch(rng)
    own = next(g for g in np.unique(groups) if np.sum(groups == g) == 8 and g % 5)
    here = np.flatnonzero(groups == own)[:2]
    plain = library.call(grpo_advantages, rewards, groups)
    big = np.finfo(library.dtype).max
    for values in ((big, -big), (np.inf, 0.0), (np.nan, np.nan)):
        changed = rewards.copy()
        changed[here] = values
        got = library.call(grpo_advantages, changed, groups)
        assert np.array_equal(got[groups != own], plain[groups != own])
        if np.isinf(values[0]):
            assert np.isnan(got[here]).all()
        else:
            assert np.isfinite(got).all()


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "rloo", "gdpo", "ema-grpo"])
def test_an_infinite_reward_makes_its_own_group_nan(library, name):
    rewards, groups = np.asarray([0.0, np.inf, 0.0, 1.0]), np.asarray([0, 0, 1, 1])
    got = library.call(ESTIMATORS[name], rewards, groups)
    assert np.isnan(got[:2]).all()
    assert got[3] == -got[2] >= 0.5


def test_an_infinite_reward_enters_no_running_moment(library):
    rewards = library.array(np.asarray([0.0, np.inf, 0.0, 1.0]))
    labels = [library.array(np.asarray(x)) for x in ([0, 0, 1, 1], [0, 0, 0, 0])]
    got, state = ema_grpo_advantages(rewards, *labels, EMAState.start(1, rewards))
    assert float(state.mean[0]) == pytest.approx(1 / 3)
    assert float(state.variance[0]) == pytest.approx(2 / 9)
    np.testing.assert_allclose(library.numpy(got)[2:], [-1.06066, 1.06066], rtol=1e-5)


def test_a_small_spread_on_a_large_offset_loses_no_digits(library):
    """E[x²] - E[x]² would lose all digits here."""
    rewards = np.asarray([1000.0, 1000.0, 1000.0, 1000.0 + 2**-10]).astype(library.dtype)
    got = library.call(grpo_advantages, rewards, np.zeros(4, int), epsilon=0.0)
    np.testing.assert_allclose(got, [-0.5, -0.5, -0.5, 1.5], rtol=1e-6)


def test_order_does_not_change_a_bit(library, rng):
    rewards, groups, _ = batch(rng)
    shuffle = rng.permutation(len(rewards))
    for function in (grpo_advantages, rloo_advantages, gdpo_advantages):
        assert np.array_equal(
            library.call(function, rewards[shuffle], groups[shuffle]),
            library.call(function, rewards, groups)[shuffle],
        )


@pytest.mark.parametrize("outliers", ["keep", "clip", "group"])
def test_ema_grpo_divides_by_the_running_deviation_of_the_task(library, rng, outliers):
    like = library.array(np.zeros(1))
    state, moments = EMAState.start(5, like), {}
    for step in range(3):
        rewards, groups, tasks = batch(np.random.default_rng(step))
        rewards = np.where(tasks == 2, 0.001 * rewards, rewards)
        if step < 2:
            rewards[np.flatnonzero(tasks == 1)[:3]] = 500.0
        tasks = np.where(tasks == 2, 3 if step == 1 else 2, tasks)
        got, state = ema_grpo_advantages(
            *(library.array(x) for x in (rewards, groups, tasks)),
            state,
            outliers=outliers,
            limit=3.0,
            decay=0.9,
        )
        expected = by_group(lambda r: r - r.mean(), rewards, groups)
        for task in np.unique(tasks):
            own = rewards[(tasks == task) & ~np.isnan(rewards)]
            new = np.asarray([own.mean(), np.mean(own**2)])
            moments[task] = 0.9 * moments[task] + 0.1 * new if task in moments else new
            std = max(np.sqrt(moments[task][1] - moments[task][0] ** 2), 1e-3)
            expected[tasks == task] /= std + 1e-6
        if outliers == "clip":
            expected = np.clip(expected, -3, 3)
        if outliers == "group":
            own = by_group(lambda r: (r - r.mean()) / (r.std() + 1e-6), rewards, groups)
            wild = np.unique(groups[np.abs(expected) > 3])
            expected = np.where(np.isin(groups, wild), own, expected)
        close(library, library.numpy(got), expected)
        saved = json.loads(json.dumps(state.to_json(), allow_nan=False))
        state = EMAState.from_json(saved, like)
    assert library.numpy(state.seen).tolist() == [True, True, True, True, False]


def test_ema_labels_without_a_state_get_zero(library):
    rewards, groups = np.asarray([0.0, 1, 0, 1, 0, 1]), np.asarray([0, 0, 1, 1, 2, 2])
    tasks = np.asarray([0, 0, -3, -3, 4, 4])
    state = EMAState.start(2, library.array(np.zeros(1)))
    got, _ = ema_grpo_advantages(*map(library.array, (rewards, groups, tasks)), state)
    assert library.numpy(got)[2:].tolist() == [0, 0, 0, 0]


def test_a_state_with_missing_fields_is_refused():
    with pytest.raises(ValueError, match="EMAState must have the fields mean, variance, seen"):
        EMAState.from_json({"mean": [0.0]}, np.zeros(1))


def test_every_registered_estimator_takes_tasks_and_task_weights(library, rng):
    rewards, groups, tasks = batch(rng)
    parts = np.stack([rewards, rewards * 2], axis=1)
    lengths, weights = library.array(1 + groups % 7), np.asarray([0.5, 1.0, 2.0])
    for name, estimator in ESTIMATORS.items():
        options = {"lengths": lengths} if takes_lengths(estimator) else {}
        got = library.call(estimator, rewards, groups, tasks, **options)
        assert got.shape == rewards.shape, name
        assert np.isfinite(got).all()
        weighted = library.call(
            estimator, rewards, groups, tasks, task_weights=library.array(weights), **options
        )
        assert np.array_equal(weighted, got * weights.astype(got.dtype)[tasks]), name
        assert library.call(estimator, rewards, groups, None, **options).shape == rewards.shape
        options["component_weights"] = [1.0, 0.5]
        got = library.call(estimator, parts, groups, tasks, **options)
        assert got.shape == rewards.shape
    assert np.array_equal(
        library.call(ESTIMATORS["gaussian"], rewards, groups, tasks),
        library.call(gaussian_advantages, rewards, groups, tasks),
    )
    close(
        library,
        library.call(ESTIMATORS["grpo"], parts, groups, tasks, component_weights=[1.0, 0.5]),
        library.call(grpo_advantages, 2 * rewards, groups),
    )


def test_a_taken_name_and_an_uncallable_estimator_are_refused():
    with pytest.raises(ValueError, match="'grpo' already"):
        register_estimator("grpo", len)
    with pytest.raises(TypeError, match="must be callable"):
        register_estimator("new", 3)
    assert register_estimator("new", len) is len
    assert ESTIMATORS.pop("new").__wrapped__ is len


def test_an_estimator_with_an_option_task_weights_applies_it_itself():
    def own(rewards, groups, tasks, *, task_weights=None):
        return rewards if task_weights is None else rewards + task_weights[tasks]

    register_estimator("own", own)
    registered = ESTIMATORS.pop("own")
    labels = np.asarray([0, 1])
    found = registered(np.ones(2), labels, labels, task_weights=np.asarray([1.0, 2.0]))
    assert found.tolist() == [2.0, 3.0]
