"""Length targets, entropy weights and task weights, fixed and adaptive."""

import json

import numpy as np
import pytest

from g2rpo_trainer.advantages import Shaping, shaping_options
from g2rpo_trainer.config import Data, Length, TrainConfig, load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.scoring import Rewards

from .parts import shaping_of

TASKS = "data.tasks=[maths, ocr]"
NAMES = ["maths", "ocr"]


def describe(*settings):
    return load_config(settings=[TASKS, *settings])


def observe(shaping, lengths, accuracy, task=0):
    """Shape a step of responses to one prompt, and return their length rewards."""
    lengths, accuracy = np.asarray(lengths), np.asarray(accuracy, np.float32)
    tasks = np.full(len(lengths), task)
    rewards = Rewards(accuracy, accuracy, accuracy, accuracy)
    return shaping(rewards, lengths, len(lengths), tasks).length_reward


def lengths_of(shaping):
    return {name: value for name, value in shaping.metrics().items() if "length" in name}


def test_fixed_targets_stay():
    control = shaping_of(describe("length.targets={ocr: [0, 1, 2, 3]}"), NAMES)
    assert (observe(control, [40] * 20, [1] * 20, task=1) == 0).all()
    assert np.isnan(control.length_thresholds[0]).all()
    assert control.length_thresholds[1].tolist() == [0, 1, 2, 3]
    assert control.state_dict() == {}
    assert lengths_of(control) == {"length_target/low/ocr": 1, "length_target/high/ocr": 2}


def test_kinds_follow_from_the_longest_response():
    settings = ["length.targets={maths: reasoning, ocr: direct}"]
    settings += ["rollout.max_completion_length=1024", "rollout.limits.ocr=512"]
    control = shaping_of(describe(*settings), NAMES)
    assert control.length_thresholds.tolist() == [[16, 64, 512, 1024], [0, 0, 16, 64]]


def test_calibrated_targets_move_to_the_right_responses():
    control = shaping_of(describe("length.calibrate=true"), NAMES)
    before = control.length_thresholds.copy()
    for _ in range(200):
        observe(control, [*range(10, 30), *[3] * 20], [1] * 20 + [0] * 20)
    right = np.quantile(np.arange(10, 30), [0.02, 0.25, 0.75, 0.98])
    assert control.length_thresholds[0] == pytest.approx(right, abs=0.1)
    assert (control.length_thresholds[1] == before[1]).all()


def test_a_task_without_a_target_gets_its_first_from_the_data():
    control = shaping_of(describe("length.calibrate=true", "length.targets={}"), NAMES)
    observe(control, [10] * 7, [1] * 7)  # one too few
    assert np.isnan(control.length_thresholds).all()
    observe(control, [10] * 8, [1] * 8)
    assert (control.length_thresholds[0] == 10).all()
    assert np.isnan(control.length_thresholds[1]).all()
    assert set(lengths_of(control)) == {"length_target/low/maths", "length_target/high/maths"}


def test_graded_and_absent_rewards_count_from_the_mean_on():
    control = shaping_of(describe("length.calibrate=true", "length.targets={}"), NAMES)
    lengths = [5] * 10 + [50] * 10 + [500]
    observe(control, lengths, [0.1] * 10 + [0.6] * 10 + [np.nan])
    assert (control.length_thresholds[0] == 50).all()


def test_lengths_are_rewarded_after_the_warm_up():
    control = Shaping(
        shaping_options(
            describe("length.calibrate=true", "length.calibration.warmup_steps=2"), NAMES
        )
    )
    seen = [~np.isnan(observe(control, [10], [1])).all() for _ in range(3)]
    assert seen == [False, False, True]


def test_length_state_goes_through_json():
    config = describe("length.calibrate=true", "length.targets={ocr: [0, 1, 2, 3]}")
    one, other = shaping_of(config, NAMES), shaping_of(config, NAMES)
    observe(one, [*range(10)], [1] * 10, task=1)
    other.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    rewarded = [observe(each, [*range(30, 50)], [1] * 20, task=1) for each in (one, other)]
    assert np.array_equal(*rewarded, equal_nan=True)
    assert np.array_equal(one.length_thresholds, other.length_thresholds, equal_nan=True)
    assert one.state_dict() == other.state_dict()
    assert np.isnan(one.length_thresholds[0]).all()
    assert not np.array_equal(one.length_thresholds[1], [0, 1, 2, 3])


def test_fixed_entropy_weights_may_differ_by_task():
    shaping = shaping_of(describe("entropy.weights.ocr=0.5"), NAMES)
    shaping.adapt_entropy_weights(np.asarray([9.0, 9.0]), np.asarray([True, True]))
    assert shaping.entropy_weights.tolist() == [0.02, 0.5]
    metrics = shaping.metrics()
    assert (metrics["entropy_weight/maths"], metrics["entropy_weight/ocr"]) == (0.02, 0.5)
    assert shaping.state_dict() == {}


def test_an_adaptive_entropy_weight_rises_outside_of_the_band_up_to_the_maximum():
    config = describe("entropy.control=adaptive", "entropy.max_weight=0.05")
    shaping, before = shaping_of(config), config.model_dump()
    shaping.adapt_entropy_weights(np.asarray([1.1, 0.3]), np.asarray([True, True]))
    assert shaping.entropy_weights == pytest.approx([0.03, 0.015])
    assert config.model_dump() == before
    restored = shaping_of(config)
    restored.load_state_dict(json.loads(json.dumps(shaping.state_dict())))
    for each in (shaping, restored):
        each.adapt_entropy_weights(np.asarray([9.0, 9.0]), np.asarray([True, False]))
        assert each.entropy_weights == pytest.approx([0.05, 0.015])


def test_only_builtin_tasks_have_targets_unless_they_are_named(tmp_path):
    path = tmp_path / "own.jsonl"
    assert load_config().length.targets["ocr"]
    own = {"data.source": str(path), "data.tasks": ["ocr"]}
    assert load_config(None, own).length.targets == {}
    named = load_config(None, own, ["length.targets.ocr=direct"])
    assert named.length.targets == {"ocr": "direct"}
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{source: {path}}}\nlength: {{weight: 0.5}}\n")
    assert load_config(config).length.targets == {}
    assert TrainConfig(data=Data(source=str(path))).length.targets == {}
    explicit = TrainConfig(data=Data(source=str(path)), length=Length(targets={"a": "direct"}))
    assert explicit.length.targets == {"a": "direct"}


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("length.targets.maths=short", ["length.targets.maths: 'short'", "reasoning or direct"]),
        ("length.targets.maths=[1, 2, 3, x]", ["length.targets.maths", "in tokens"]),
        ("length.targets.maths=[1, 2, 3, .inf]", ["length.targets.maths", "ascend"]),
        ("rollout.limits.maths=5", ["length.targets.maths", "6 tokens", "limits.maths is 5"]),
        ("length.calibration.quantiles=[.9, .2, .7, 1]", ["quantiles", "ascend"]),
        ("entropy.weights.ocr=-1", ["entropy.weights", "ocr is -1", "0 or more"]),
        ("entropy.control=auto", ["entropy.control", "'auto'", "adaptive"]),
        ("rewards.functions.ocr=nothing", ["rewards.functions", "ocr", "module:function"]),
        ("rewards.workers=-1", ["rewards.workers", "-1"]),
        ("rewards.timeout=0", ["rewards.timeout", "0"]),
        ("rewards.weights={accuracy: 0, format: 0}", ["rewards.weights", "all 0"]),
    ],
)
def test_error_names_the_key_the_value_and_the_way_out(setting, parts):
    with pytest.raises(RunError) as raised:
        describe(setting)
    assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_decoupled_needs_an_estimator_that_can():
    with pytest.raises(RunError, match="decoupled is set, but rloo"):
        describe("estimator.decoupled=true", "estimator.name=rloo")


def test_a_target_for_a_task_that_there_is_not_is_refused():
    assert open_run(describe("length.targets.vqa=direct")).tasks == ("maths", "ocr")
    with pytest.raises(RunError, match=r"length.targets: unknown task 'math'.*'maths'"):
        open_run(describe("length.targets.math=direct"))


def task_weights(shaping):
    metrics = shaping.metrics()
    return [metrics["task_weight/maths"], metrics["task_weight/ocr"]]


def test_fixed_task_weights_stay():
    shaping = shaping_of(describe("task_weights.weights={ocr: 3}"), NAMES)
    shaping.adapt_task_weights({"maths": 1.0, "ocr": 9.0}, step=10)
    assert task_weights(shaping) == [1, 3]
    assert shaping.state_dict() == {}


def test_task_weights_follow_the_norms_in_the_steps_that_are_due():
    settings = ["task_weights.adapt=2", "task_weights.rate=1", "task_weights.high=2.5"]
    shaping = shaping_of(describe(*settings), NAMES)
    shaping.adapt_task_weights({"maths": 1.0, "ocr": 4.0}, step=3)
    assert task_weights(shaping) == [1, 1]
    shaping.adapt_task_weights({"maths": 1.0, "ocr": 4.0}, step=4)
    assert task_weights(shaping) == pytest.approx([2, 0.5])
    shaping.adapt_task_weights({"ocr": 4.0}, step=6)  # alone it has no other to compare with
    assert task_weights(shaping) == pytest.approx([2, 0.5])
    shaping.adapt_task_weights({"maths": 1.0, "ocr": 4.0}, step=8)
    assert task_weights(shaping) == pytest.approx([2.5, 0.4])
    other = shaping_of(describe(*settings), NAMES)
    other.load_state_dict(json.loads(json.dumps(shaping.state_dict())))
    assert task_weights(other) == task_weights(shaping)


def test_a_weight_for_an_unknown_task_is_refused():
    with pytest.raises(RunError, match=r"task_weights\.weights: .*'orc'"):
        open_run(load_config(settings=["task_weights.weights={orc: 2}"]))
