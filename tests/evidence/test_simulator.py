"""Simulated runs: advantages by the core, seeds apart from each other, prompts without signal."""

from dataclasses import replace

import numpy as np
import pytest

import g2rpo
from benchmarks.evidence.policies import Policies, cold_start
from benchmarks.evidence.simulator import Setting, State, adapt, advantages, collect, corrupted, run
from benchmarks.evidence.world import STOP, TARGETS, TASKS, World

SEEDS = range(5, 8)


@pytest.fixture(scope="module")
def world():
    return World(SEEDS)


@pytest.fixture(scope="module")
def start(world):
    return cold_start(world, 60)


@pytest.fixture(scope="module")
def rollouts(world, start):
    """Rollouts and rewards of a step, (S, P, G)."""
    _, rollouts, rewards, _ = collect(Setting(), world, Policies(start), 0)
    return rollouts, rewards


def by_hand(setting, rollouts, rewards, seed):
    """Return the advantages (N,) of one seed, as a user of the core would compute them."""
    values, tasks = rewards[seed].reshape(-1), np.repeat(np.arange(len(TASKS)), 16)
    lengths = rollouts.lengths[seed].reshape(-1)
    options = dict(setting.options)
    if setting.format_weight:
        values = np.stack([values, lengths < 12], axis=1)
        options["component_weights"] = [1.0, setting.format_weight]
    if setting.estimator == "ema-grpo":
        state = g2rpo.EMAState.start(len(TASKS), np.zeros(1))
        if setting.format_weight:
            values = values @ np.asarray(options.pop("component_weights"))
        return g2rpo.ema_grpo_advantages(values, 8, tasks, state, **options)[0]
    if setting.estimator == "opo":
        options["lengths"] = lengths
    return g2rpo.ESTIMATORS[setting.estimator](values, 8, tasks, **options)


@pytest.mark.parametrize("format_weight", [0.0, 0.3])
@pytest.mark.parametrize("name", list(g2rpo.ESTIMATORS))
def test_advantages_of_each_seed_are_those_of_a_call_by_hand(
    name, format_weight, rollouts, subtests
):
    settings = [Setting(estimator=name, format_weight=format_weight)]
    if name == "gaussian":
        stages = (None, "match", "match-all")
        settings += [replace(settings[0], options={"task_stage": stage}) for stage in stages]
        settings.append(replace(settings[0], options={"resolution": 0.1, "ties": "barycentre"}))
        if format_weight:
            settings.append(replace(settings[0], options={"decoupled": True}))
    for setting in settings:
        with subtests.test(setting=str(setting.options)):
            found, _ = advantages(setting, rollouts[1], rollouts[0], State.start(setting, 3))
            for seed in range(3):
                expected = by_hand(setting, *rollouts, seed)
                np.testing.assert_allclose(found[seed].reshape(-1), expected, atol=1e-12)
            assert found.any()


def test_running_moments_of_a_seed_are_its_own(rollouts):
    setting = Setting(estimator="ema-grpo")
    state = State.start(setting, 3)
    own = g2rpo.EMAState.start(len(TASKS), np.zeros(1))
    for scale in (1.0, 0.5, 2.0):
        rewards = scale * rollouts[1]
        found, _ = advantages(setting, rewards, rollouts[0], state)
        tasks = np.repeat(np.arange(len(TASKS)), 16)
        expected, own = g2rpo.ema_grpo_advantages(rewards[1].reshape(-1), 8, tasks, own)
        np.testing.assert_allclose(found[1].reshape(-1), expected, atol=1e-12)


@pytest.mark.parametrize("gate", [True, False])
def test_length_term_has_the_matched_length_rewards(gate, rollouts):
    setting = Setting(length="term", gate=gate)
    _, found = advantages(setting, rollouts[1], rollouts[0], State.start(setting, 3))
    tasks = np.repeat(np.arange(len(TASKS)), 16)
    for seed in range(3):
        lengths = rollouts[0].lengths[seed].reshape(-1).astype(float)
        right = rollouts[1][seed].reshape(-1) > 0
        reward = g2rpo.length_reward(lengths, TARGETS[tasks], right=right if gate else None)
        expected = g2rpo.gaussian_advantages(reward, 8, tasks)
        np.testing.assert_allclose(found[seed].reshape(-1), expected, atol=1e-12)


def test_calibrated_targets_move_towards_the_lengths_of_right_responses(rollouts):
    setting = Setting(length="term", calibrated=True)
    state = State.start(setting, 3)
    advantages(setting, rollouts[1], rollouts[0], state)
    assert state.targets.shape == (3 * len(TASKS), 4)
    assert not np.array_equal(state.targets, np.tile(TARGETS, (3, 1)))


SETTINGS = [
    Setting(),
    Setting(estimator="ema-grpo", outliers=(0.05, 10.0), flipped=0.05, noise=0.02),
    Setting(estimator="reinforce++", updates=2, loss={"loss_type": "gspo"}),
    Setting(length="term", calibrated=True, follow_norms=2, loss={"aggregation": "task"}),
    Setting(
        entropy_weight=0.1,
        entropy_rate=0.02,
        candidates=3,
        options={"decoupled": True},
        format_weight=0.3,
    ),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=range(len(SETTINGS)))
def test_result_of_a_seed_does_not_depend_on_the_other_seeds(setting, world, start):
    together = run(setting, world, start, 4)
    alone = World(range(6, 7))
    start_alone = cold_start(alone, 60)
    np.testing.assert_allclose(start_alone[0], start[1], atol=1e-10)
    found = run(setting, alone, start_alone, 4)
    for name, values in found.items():
        np.testing.assert_allclose(values[0], together[name][1], atol=1e-8, err_msg=name)


def test_settings_of_one_seed_meet_the_same_prompts_and_noise(world, start):
    policies = Policies(start)
    first, second = (
        collect(replace(Setting(), **changes), world, policies, 3)
        for changes in ({}, {"estimator": "grpo", "learning_rate": 1.0})
    )
    np.testing.assert_array_equal(first[0].features, second[0].features)
    np.testing.assert_array_equal(first[1].tokens, second[1].tokens)
    disturbed = collect(Setting(noise=0.1), world, policies, 3)
    np.testing.assert_array_equal(first[1].tokens, disturbed[1].tokens)


def test_responses_are_sampled_from_the_softmax_and_end_at_the_stop(world):
    prompts = world.prompts("check", 0, 1)
    logits = np.log(np.asarray([0.3, 0.1, 0.05, 0.05, 0.2, 0.1, 0.2]))
    logits = np.broadcast_to(logits, (3, len(TASKS), 12, 7))
    rollouts = world.sample("check", 0, logits, prompts, 2000)
    shares = np.bincount(rollouts.tokens.reshape(-1)) / rollouts.tokens.size
    np.testing.assert_allclose(shares, np.exp(logits[0, 0, 0]), atol=3e-3)
    stops = (rollouts.tokens == STOP) & rollouts.mask
    last = np.take_along_axis(rollouts.tokens, rollouts.lengths[..., None] - 1, -1)[..., 0]
    assert ((last == STOP) | (rollouts.lengths == 12)).all()
    assert (stops.sum(axis=-1) <= 1).all()


def test_right_answer_has_the_full_reward_of_its_shape(world):
    prompts = world.prompts("check", 1, 3)
    sure = 50.0 * np.eye(7)[prompts.answers]
    rollouts = world.sample("check", 1, sure, prompts, 4)
    rewards = world.rewards("check", 1, rollouts.share, prompts.tasks)
    assert (rollouts.share == 1).all()
    lengths = np.asarray([task.length for task in TASKS])[prompts.tasks]
    np.testing.assert_array_equal(rollouts.lengths, np.tile(lengths[:, None] + 1, (3, 1, 4)))
    for number, task in enumerate(TASKS):
        least = {"overlap": 0.8, "steps": 0.8}.get(task.shape, 1.0)
        own = rewards[:, prompts.tasks == number]
        assert own.min() >= least
        assert own.max() <= 1


def test_disturbances_reach_the_rewards_that_they_say(world):
    prompts = world.prompts("check", 2, 50)
    rewards = np.full((3, len(prompts.tasks), 8), 0.25)
    turned = corrupted(Setting(flipped=0.1), world, 0, rewards, prompts) != rewards
    is_binary = np.asarray([task.shape == "binary" for task in TASKS])[prompts.tasks]
    assert not turned[:, ~is_binary].any()
    assert turned[:, is_binary].mean() == pytest.approx(0.1, abs=0.02)
    far = corrupted(Setting(outliers=(0.02, 100.0)), world, 0, rewards, prompts)
    assert set(np.unique(far)) == {0.25, 25.0}
    assert (far == 25).mean() == pytest.approx(0.02, abs=0.005)
    scaled = corrupted(Setting(scale=10.0), world, 0, rewards, prompts)
    assert (scaled[:, prompts.tasks == 0] == 2.5).all()
    assert (scaled[:, prompts.tasks > 0] == 0.25).all()
    noisy = corrupted(Setting(noise=0.1), world, 0, rewards, prompts)
    assert noisy.std() == pytest.approx(0.1, abs=0.01)


def test_dynamic_sampling_keeps_groups_with_signal_while_there_are_any(world, start):
    policies = Policies(start)
    everything = collect(Setting(prompts=8), world, policies, 0)
    setting = Setting(prompts=2, candidates=4)
    prompts, rollouts, rewards, sampled = collect(setting, world, policies, 0)
    silent = everything[2].max(axis=2) == everything[2].min(axis=2)
    for seed in range(3):
        for task in range(len(TASKS)):
            there = (~silent[seed, 8 * task : 8 * task + 8]).sum()
            kept = rewards[seed, 2 * task : 2 * task + 2]
            assert (kept.max(axis=1) > kept.min(axis=1)).sum() == min(2, there)
    assert prompts.features.shape[1] == rollouts.tokens.shape[1] == 2 * len(TASKS)
    assert (sampled >= 1).all()
    assert (sampled <= 4).all()
    assert sampled.max() > 1


def test_training_raises_the_reward(world, start):
    found = run(Setting(), world, start, 40)
    assert (found["curve"][:, -1].mean(axis=1) > found["curve"][:, 0].mean(axis=1)).all()


def test_task_without_a_gradient_but_for_rounding_keeps_its_weight():
    setting = Setting(follow_norms=1)
    state = State.start(setting, 2)
    norms = np.full((2, len(TASKS)), 0.01)
    norms[:, 0], norms[0, 3], norms[1, 3] = 0.04, 0.0, 1e-20
    adapt(setting, state, norms, np.zeros_like(norms), 0)
    np.testing.assert_array_equal(state.task_weights[0], state.task_weights[1])
    assert state.task_weights[0, 3] == 1
    assert state.task_weights[0, 0] < 1 < state.task_weights[0, 1]


def test_entropy_term_moves_the_entropy_towards_its_band(world, start):
    bands = ((0.0, 0.1), (1.5, 2.0))
    low, high = (
        run(Setting(entropy_weight=1.0, entropy_band=band), world, start, 15)["entropy"][:, -1]
        for band in bands
    )
    assert (low.mean(axis=1) < high.mean(axis=1) - 0.3).all()
