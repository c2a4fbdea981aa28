"""From rewards, components and lengths to advantages, and the state that a run keeps of them."""

import json

import numpy as np
import pytest

import g2rpo
from g2rpo_trainer import train
from g2rpo_trainer.config import load_config
from g2rpo_trainer.scoring import Rewards

from .parts import shaping_of

GROUPS = np.arange(3).repeat(4)
TASKS = np.zeros(12, np.int64)
LENGTHS = np.arange(12)


def some_rewards(seed=0):
    rng = np.random.default_rng(seed)
    accuracy, form = rng.random(12, np.float32), rng.random(12, np.float32).round()
    structure = 0.5 * form
    return Rewards(0.9 * accuracy + 0.1 * form + 0.3 * structure, accuracy, form, structure)


def shaping(*settings):
    weights = "rewards.weights.structure=0.3"
    config = load_config(settings=["data.tasks=[maths]", weights, *settings])
    return shaping_of(config)


def test_summed_components_are_what_one_reward_is():
    rewards = some_rewards()
    advantages = shaping("length.mode=off")(rewards, LENGTHS, GROUPS, TASKS)
    assert np.array_equal(
        advantages.policy, g2rpo.gaussian_advantages(rewards.reward, GROUPS, TASKS)
    )
    assert advantages.length is advantages.length_reward is None


@pytest.mark.parametrize("name", ["gaussian", "gdpo"])
def test_decoupled_components_go_to_the_estimator_with_their_weights(name):
    rewards = some_rewards()
    settings = ["length.mode=off", f"estimator.name={name}", "estimator.decoupled=true"]
    advantages = shaping(*settings)(rewards, LENGTHS, GROUPS, TASKS).policy
    columns, weights = np.stack(list(rewards.columns().values())[1:], axis=1), [0.9, 0.1, 0.3]
    if name == "gaussian":
        expected = g2rpo.gaussian_advantages(
            columns, GROUPS, TASKS, decoupled=True, component_weights=weights
        )
    else:
        expected = g2rpo.gdpo_advantages(columns, GROUPS, component_weights=weights)
    assert np.array_equal(advantages, expected)
    summed = shaping("length.mode=off")(rewards, LENGTHS, GROUPS, TASKS).policy
    assert not np.allclose(advantages, summed)


def test_length_is_a_component_of_its_own_where_it_is_part_of_the_reward():
    settings = ["length.mode=reward", "length.weight=0.4", "length.targets.maths=[0, 2, 4, 9]"]
    control = shaping(*settings, "estimator.decoupled=true")
    rewards = some_rewards()
    advantages = control(rewards, LENGTHS, GROUPS, TASKS)
    right = rewards.accuracy > 0
    length = g2rpo.length_reward(
        LENGTHS.astype(np.float32), g2rpo.LengthTarget(0, 2, 4, 9), right=right
    )
    columns = np.stack([*list(rewards.columns().values())[1:], length], axis=1)
    expected = g2rpo.gaussian_advantages(
        columns, GROUPS, TASKS, decoupled=True, component_weights=[0.9, 0.1, 0.3, 0.4]
    )
    assert np.array_equal(advantages.policy, expected)
    assert advantages.length is None
    summed = shaping(*settings)(rewards, LENGTHS, GROUPS, TASKS).policy
    total = rewards.reward + np.float32(0.4) * length
    assert np.array_equal(summed, g2rpo.gaussian_advantages(total, GROUPS, TASKS))


def test_rewards_and_lengths_whose_sums_are_equal_on_paper_are_ties():
    control = shaping(
        "length.mode=reward", "length.weight=0.1", "length.targets.maths=[0, 0, 4, 4]"
    )
    tenths = np.asarray([0.1, 0.2, 0.6, 0.7] * 3, np.float32)
    assert tenths[0] + np.float32(0.1) == tenths[1]
    assert tenths[2] + np.float32(0.1) != tenths[3]
    rewards = Rewards(tenths, np.ones_like(tenths), tenths, tenths)
    lengths = np.asarray([4, 9, 4, 9] * 3)
    advantages = control(rewards, lengths, np.arange(12) // 4, np.zeros(12, int)).policy
    assert len(set(advantages.tolist())) == 2


@pytest.mark.parametrize("mode", ["term", "reward", "off"])
def test_an_absent_reward_takes_no_part(mode):
    rewards = some_rewards()
    rewards.accuracy[5] = rewards.reward[5] = np.nan
    advantages = shaping(f"length.mode={mode}")(rewards, LENGTHS, GROUPS, TASKS)
    assert advantages.policy[5] == 0
    assert np.isfinite(advantages.policy).all()
    others = [4, 6, 7]
    assert float(advantages.policy[others].sum()) == pytest.approx(0, abs=1e-6)
    if mode == "term":
        assert advantages.length[5] == 0
        assert np.isfinite(advantages.length).all()


@pytest.mark.parametrize("mode", ["term", "reward", "off"])
@pytest.mark.parametrize("only_right", ["true", "false"])
def test_an_absent_response_enters_no_statistic(mode, only_right):
    """The others get what they would get if there were no such response."""
    settings = [f"length.mode={mode}", f"length.only_right={only_right}"]
    rewards, absent = some_rewards(), np.zeros(12, bool)
    absent[[5, 9]] = True
    there = ~absent
    found = shaping(*settings)(rewards, LENGTHS, GROUPS, TASKS, absent)
    fewer = rewards.rows(there)
    expected = shaping(*settings)(fewer, LENGTHS[there], GROUPS[there], TASKS[there])
    for ours, theirs in ((found.policy, expected.policy), (found.length, expected.length)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours[there], theirs, atol=1e-6)
            assert (ours[absent] == 0).all()
    if mode != "off":
        assert np.isnan(found.length_reward[absent]).all()


def test_task_weights_are_factors_of_the_advantages():
    control = shaping("data.tasks=[maths, ocr]", "task_weights.weights={ocr: 2.5}")
    tasks = np.arange(12) // 4 % 2
    plain = control(some_rewards(), LENGTHS, GROUPS, tasks)
    weighted = plain.weighted(tasks)
    factors = np.float32([1, 2.5])[tasks]
    assert weighted.policy.dtype == weighted.length.dtype == np.float32
    assert np.array_equal(weighted.policy, plain.policy * factors)
    assert np.array_equal(weighted.length, plain.length * factors)
    assert np.abs(weighted.policy - plain.policy).max() > 0
    assert control.metrics()["task_weight/ocr"] == 2.5
    assert not [name for name in shaping().metrics() if "task_weight" in name]


OTHERS = [name for name in g2rpo.ESTIMATORS if name not in ("gaussian", "gdpo")]


@pytest.mark.parametrize("estimator", OTHERS)
def test_every_estimator_takes_a_runs_rewards(estimator):
    rewards = some_rewards()
    rewards.accuracy[0] = rewards.reward[0] = np.nan
    options = ["estimator.options={k: 2}"] if estimator == "pass@k" else []
    control = shaping(f"estimator.name={estimator}", *options)
    advantages = control(rewards, LENGTHS, GROUPS, TASKS).policy
    assert advantages[0] == 0
    assert np.isfinite(advantages).all()
    assert np.abs(advantages).max() > 0


def test_opo_gets_the_lengths_of_the_responses():
    rewards = some_rewards()
    found = shaping("estimator.name=opo", "length.mode=off")(rewards, LENGTHS, GROUPS, TASKS)
    expected = g2rpo.opo_advantages(rewards.reward, GROUPS, lengths=LENGTHS)
    assert np.array_equal(found.policy, expected)


@pytest.mark.parametrize(
    ("name", "options", "keywords"),
    [
        ("pass@k", "{k: 2, threshold: 0.8}", {"k": 2, "threshold": 0.8}),
        ("grpo", "{scale: batch, epsilon: 0.1}", {"scale": "batch", "epsilon": 0.1}),
    ],
)
def test_options_reach_the_estimator(name, options, keywords):
    rewards = some_rewards()
    settings = ["length.mode=off", f"estimator.name={name}", f"estimator.options={options}"]
    found = shaping(*settings)(rewards, LENGTHS, GROUPS, TASKS).policy
    assert np.array_equal(found, g2rpo.ESTIMATORS[name](rewards.reward, GROUPS, TASKS, **keywords))
    plain = shaping(*settings[:2])(rewards, LENGTHS, GROUPS, TASKS).policy
    assert not np.array_equal(found, plain)


def test_options_reach_the_estimator_that_keeps_a_state():
    rewards = some_rewards()
    settings = ["length.mode=off", "estimator.name=ema-grpo", "estimator.options={minimum_std: 9}"]
    found = shaping(*settings)(rewards, LENGTHS, GROUPS, TASKS).policy
    state = g2rpo.EMAState.start(1, np.zeros(1, np.float32))
    expected, _ = g2rpo.ema_grpo_advantages(rewards.reward, GROUPS, TASKS, state, minimum_std=9)
    assert np.array_equal(found, expected)


def test_warm_up_rewards_no_length_and_calibration_then_does():
    control = shaping(
        "length.calibrate=true",
        "length.targets={}",
        "length.calibration={warmup_steps: 1, min_samples: 4}",
    )
    rewards = Rewards(*np.ones((4, 12), np.float32))
    first = control(rewards, LENGTHS, GROUPS, TASKS)
    assert np.isnan(first.length_reward).all()
    assert (first.length == 0).all()
    second = control(rewards, LENGTHS, GROUPS, TASKS)
    assert second.length_reward[5] == 1 > second.length_reward[0]
    assert np.abs(second.length).max() > 0


def test_an_entropy_above_the_band_raises_the_weight_of_its_task():
    control = shaping("entropy.control=adaptive", "entropy.high=0.5")
    control.adapt_entropy_weights(np.asarray([1.5]), np.asarray([True]))
    assert control.entropy_weights == pytest.approx([0.02 + 0.02 * 1.0])
    assert control.metrics()["entropy_weight/maths"] == control.entropy_weights[0]


def test_state_of_all_parts_goes_through_json():
    settings = ["length.calibrate=true", "entropy.control=adaptive", "estimator.name=ema-grpo"]
    settings += ["data.tasks=[maths, ocr]", "task_weights.adapt=1"]
    one, other = shaping(*settings), shaping(*settings)

    def step(control, seed):
        control.adapt_task_weights({"maths": 1.0 + seed, "ocr": 4.0}, seed + 1)
        control.adapt_entropy_weights(
            np.random.default_rng(seed).random(2) + 1, np.asarray([True, True])
        )
        return control(some_rewards(seed), LENGTHS + 30, GROUPS, TASKS)

    step(one, 0)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for seed in (1, 2):
        ours, theirs = step(one, seed), step(other, seed)
        assert np.array_equal(ours.policy, theirs.policy)
        assert np.array_equal(ours.length, theirs.length)
    assert one.metrics() == other.metrics()
    assert one.metrics() != shaping(*settings).metrics()


def metrics_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if "time" not in name}
        for line in lines
    ]


def test_a_resumed_run_steers_like_the_uninterrupted_one(tiny_run, tmp_path):
    settings = [
        # The embedded policy is right often enough for targets to have something to follow.
        "model.name=builtin",
        "data.tasks=[grounding, maths]",
        "rollout.max_completion_length=32",
        "rollout.num_generations=8",
        "length.calibrate=true",
        "length.calibration={warmup_steps: 1, min_samples: 1}",
        "entropy.control=adaptive",
        "entropy.high=1",
        "optimization.schedule=constant",
        "output.plots=false",
    ]
    train(tiny_run(*settings, folder="whole"))
    train(tiny_run(*settings, "optimization.steps=2", folder="parts"))
    train(tiny_run(*settings, folder="parts"), resume=True)
    whole, parts = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts")
    assert parts == whole
    assert len(whole) == 3
    for name in ("entropy_weight/maths", "length_target/low/grounding"):
        assert len({line[name] for line in whole}) == 3, name


def test_a_task_with_a_weight_of_its_own_pulls_by_it(tiny_run, tmp_path):
    """The entropy term is the sum of what each task's weight makes of its distance."""
    common = [
        "optimization.steps=1",
        "entropy.high=0.5",
        "output.plots=false",
        "output.trackers=[]",
    ]
    terms = {}
    for name, setting in (
        ("all", "entropy.weight=0.1"),
        ("none", "entropy.weight=0"),
        ("maths", "entropy={weight: 0, high: 0.5, weights: {maths: 0.1}}"),
    ):
        train(tiny_run(*common, setting, folder=name))
        (line,) = metrics_of(tmp_path / name)
        terms[name] = line["loss/entropy"]
        distance = line["entropy/maths"] - 0.5
    assert terms["none"] == 0
    assert terms["maths"] == pytest.approx(0.1 * distance, rel=1e-4)
    assert terms["all"] > 3 * terms["maths"] > 0


def test_an_adapted_entropy_weight_is_that_of_the_same_steps_loss(tiny_run, tmp_path):
    settings = ["data.tasks=[maths]", "entropy.control=adaptive", "entropy.high=0.5"]
    train(tiny_run(*settings, "optimization.steps=2", "output.trackers=[]"))
    lines = metrics_of(tmp_path / "run")
    weights = [line["entropy_weight/maths"] for line in lines]
    assert 0.02 < weights[0] < weights[1]
    for line, weight in zip(lines, weights, strict=True):
        distance = line["entropy/maths"] - 0.5
        assert line["loss/entropy"] == pytest.approx(weight * distance, rel=1e-4)
