"""From rewards and lengths to advantages, with the state that lives from step to step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import g2rpo
from g2rpo import LengthCalibration, LengthTarget, Shaping, ShapingOptions
from g2rpo.advantages import takes_components, takes_lengths
from g2rpo.shaping import total_rewards
from g2rpo.shaping_options import check_estimator, length_targets

from .shaping_oracle import ShapingOracle

TASKS = ("maths", "ocr", "vqa")
TARGETS = {"ocr": LengthTarget(2, 8, 12, 20), "vqa": LengthTarget(0, 0, 10, float("inf"))}
WEIGHTS = (0.5, 2.0)


def step_of(seed, dtype=np.float64, groups=12, members=4):
    """Return a step's arrays; rewards are multiples of 1/8, so that sums are exact."""
    rng = np.random.default_rng(seed)
    size = groups * members
    rewards = rng.integers(0, 9, (size, 2)) / 8
    rewards[rng.random((size, 2)) < 0.1] = np.nan
    accuracy = rng.integers(0, 4, size) / 4
    accuracy[rng.random(size) < 0.1] = np.nan
    order = rng.permutation(size)
    labels = np.arange(groups).repeat(members)
    return {
        "rewards": rewards.astype(dtype),
        "groups": labels[order],
        "tasks": (labels % len(TASKS))[order],
        "lengths": rng.integers(0, 25, size),
        "accuracy": accuracy.astype(dtype),
        "absent": rng.random(size) < 0.1,
    }


def shape(shaping, step, **changes):
    step = step | changes
    arrays = [step.pop(name) for name in ("rewards", "groups", "tasks")]
    return shaping.advantages(*arrays, **step)


@pytest.mark.parametrize(
    "options",
    [
        {"length_mode": "off"},
        {"length_mode": "term"},
        {"length_mode": "term", "length_only_right": False},
        {"length_mode": "reward", "length_weight": 0.25},
        {"length_mode": "reward", "length_weight": 0.25, "length_only_right": False},
        {"length_calibration": LengthCalibration(warmup_steps=1, min_samples=3)},
        {
            "length_mode": "reward",
            "length_targets": {},
            "length_calibration": LengthCalibration(
                warmup_steps=2, min_samples=1, decay=0.5, max_change=0.3, quantiles=(0, 0.1, 0.5, 1)
            ),
        },
    ],
)
@pytest.mark.parametrize("estimator", ["gaussian", "grpo", "ema-grpo"])
def test_a_run_of_steps_equals_the_oracle(estimator, options):
    more = {"estimator_options": {"decay": 0.5}} if estimator == "ema-grpo" else {}
    options = ShapingOptions(
        tasks=TASKS,
        estimator=estimator,
        reward_weights=WEIGHTS,
        **{"length_targets": TARGETS, **more, **options},
    )
    shaping, oracle = Shaping(options), ShapingOracle(options)
    for seed in range(5):
        step = step_of(seed)
        found = shape(shaping, step)
        policy, length, length_reward = oracle.step(**step)
        np.testing.assert_allclose(found.policy, policy, atol=1e-9)
        for ours, theirs in ((found.length, length), (found.length_reward, length_reward)):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                np.testing.assert_allclose(ours, theirs, atol=1e-9)
        assert (found.policy[step["absent"]] == 0).all()
        if options.length_calibration:
            targets = [[np.nan] * 4 if each is None else each for each in oracle.targets]
            np.testing.assert_allclose(shaping.length_thresholds, targets, rtol=1e-12)
    assert np.abs(found.policy).max() > 0


@given(
    means=st.lists(st.floats(0, 2, width=32), min_size=3, max_size=3),
    present=st.lists(st.booleans(), min_size=3, max_size=3),
    weights=st.lists(st.sampled_from([0.0, 0.02]), min_size=3, max_size=3),
)
def test_entropy_pulls_where_the_term_of_the_core_is_more_than_zero(means, present, weights):
    options = ShapingOptions(
        tasks=TASKS,
        entropy_weights=dict(zip(TASKS, weights, strict=True)),
        entropy_low=0.25,
        entropy_high=1.5,
    )
    means, present, weights = np.float32(means), np.asarray(present), np.asarray(weights)
    term = [
        weight * g2rpo.entropy_penalty(mean[None], np.float32([0.25]), np.float32([1.5]), is_there)
        for mean, is_there, weight in zip(means, present[:, None], weights, strict=True)
    ]
    assert Shaping(options).entropy_pulls(means, present) == (sum(term) > 0)


def test_entropy_weights_equal_the_oracle():
    options = ShapingOptions(
        tasks=TASKS,
        entropy_weights={"ocr": 0.5},
        entropy_bounds={"vqa": (0.0, 0.1)},
        entropy_control="adaptive",
        entropy_control_rate=0.3,
        entropy_max_weight=0.7,
    )
    shaping, oracle = Shaping(options), ShapingOracle(options)
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(20):
        means, present = rng.random(3) * 2, rng.random(3) < 0.7
        shaping.adapt_entropy_weights(means, present)
        oracle.adapt(means, present)
        np.testing.assert_allclose(shaping.entropy_weights, oracle.weights, rtol=1e-12)
        seen.append(shaping.entropy_weights.tolist())
    assert max(map(max, seen)) == 0.7
    assert np.asarray(seen).std(axis=0).min() > 0


@given(
    name=st.sampled_from(sorted(g2rpo.ESTIMATORS)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float64]),
    several=st.booleans(),
)
def test_advantages_are_those_of_the_estimator_called_by_hand(name, seed, dtype, several):
    step = step_of(seed, dtype)
    rewards = step["rewards"] if several else step["rewards"][:, 0]
    options = ShapingOptions(tasks=TASKS, estimator=name, reward_weights=WEIGHTS)
    found = Shaping(options).advantages(
        rewards, step["groups"], step["tasks"], lengths=step["lengths"]
    )
    estimator = g2rpo.ESTIMATORS[name]
    keywords = {"lengths": step["lengths"]} if takes_lengths(estimator) else {}
    if several:
        keywords["component_weights"] = WEIGHTS
    expected = estimator(rewards, step["groups"], step["tasks"], **keywords)
    assert found.policy.dtype == dtype
    np.testing.assert_array_equal(found.policy, expected)
    assert found.length is found.length_reward is None


STATEFUL = {
    "tasks": TASKS,
    "estimator": "ema-grpo",
    "reward_weights": WEIGHTS,
    "length_targets": TARGETS,
    "length_calibration": LengthCalibration(warmup_steps=1, min_samples=1),
    "entropy_control": "adaptive",
    "task_weights_adapt": 2,
}


def take_step(shaping, seed, number, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shaping.adapt_entropy_weights(rng.random(3) * 2, rng.random(3) < 0.7)
    shaping.adapt_task_weights({"maths": rng.random(), "vqa": rng.random()}, number)
    found = shape(shaping, step_of(seed, dtype)).weighted(step_of(seed)["tasks"])
    return found.policy, found.length, found.length_reward


@given(
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float32, np.float64]),
    left_out=st.sampled_from([None, "estimator", "length_calibration", "entropy_control"]),
)
def test_a_state_that_went_through_json_goes_on_to_the_last_bit(seeds, dtype, left_out):
    options = ShapingOptions(**{k: v for k, v in STATEFUL.items() if k != left_out})
    one, other = Shaping(options), Shaping(options)
    for number, seed in enumerate(seeds, start=1):
        take_step(one, seed, number, dtype)
    other.load_state_dict(json.loads(json.dumps(one.state_dict(), allow_nan=False)))
    assert other.state_dict() == one.state_dict()
    for number in (1, 2):
        pair = take_step(one, number, number, dtype), take_step(other, number, number, dtype)
        for ours, theirs in zip(*pair, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert one.metrics() == other.metrics()


def test_all_that_adapts_is_in_the_state():
    shaping = Shaping(ShapingOptions(**STATEFUL))
    before = shaping.state_dict()
    assert set(before) == {"tasks", "ema", "length", "entropy_weights", "task_weights"}
    take_step(shaping, 1, 2)
    after = shaping.state_dict()
    assert [name for name in before if before[name] == after[name]] == ["tasks"]


def test_without_update_nothing_is_remembered():
    shaping = Shaping(ShapingOptions(**STATEFUL))
    take_step(shaping, 0, 2)
    before = shaping.state_dict()
    judged = shape(shaping, step_of(1), update=False)
    assert shaping.state_dict() == before
    again = shape(shaping, step_of(1))
    np.testing.assert_array_equal(judged.policy, again.policy)
    assert shaping.state_dict() != before


def test_what_follows_from_the_options_has_no_state():
    shaping = Shaping(ShapingOptions(tasks=TASKS, length_targets=TARGETS, task_weights={"ocr": 2}))
    shape(shaping, step_of(0))
    shaping.adapt_entropy_weights(np.full(3, 9.0), np.ones(3, bool))
    shaping.adapt_task_weights({"maths": 1.0, "ocr": 9.0}, 1)
    assert shaping.state_dict() == {}
    shaping.load_state_dict({})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tasks": ("ocr", "maths", "vqa")}, r"of the tasks \['ocr', 'maths', 'vqa'\]"),
        ({"estimator": "grpo"}, "with length, entropy_weights, task_weights, got .* with ema, len"),
        ({"length_mode": "off"}, "with ema, entropy_weights, task_weights, got"),
        ({"entropy_control": "fixed"}, "with ema, length, task_weights, got"),
    ],
)
def test_state_of_other_options_is_refused(changes, text):
    saved = Shaping(ShapingOptions(**STATEFUL)).state_dict()
    other = Shaping(ShapingOptions(**STATEFUL | changes))
    with pytest.raises(ValueError, match=text):
        other.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"got \[\] with nothing; resume with the options"):
        other.load_state_dict({})


def test_task_weights_are_factors_of_both_advantages():
    options = ShapingOptions(
        tasks=TASKS, task_weights={"ocr": 2.5, "vqa": 0}, length_targets=TARGETS
    )
    step = step_of(0, np.float32)
    found = shape(Shaping(options), step)
    weighted = found.weighted(step["tasks"])
    factors = np.float32([1, 2.5, 0])[step["tasks"]]
    np.testing.assert_array_equal(weighted.policy, found.policy * factors)
    np.testing.assert_array_equal(weighted.length, found.length * factors)
    assert weighted.policy.dtype == weighted.length.dtype == np.float32
    assert Shaping(options).metrics()["task_weight/ocr"] == 2.5


def test_a_length_in_the_reward_leaves_absent_rewards_absent():
    options = ShapingOptions(
        length_mode="reward",
        length_only_right=False,
        length_targets={"all": LengthTarget(0, 0, 5, 9)},
    )
    rewards = np.asarray([np.nan, 0.0, 1.0, 1.0])
    found = Shaping(options).advantages(rewards, 4, lengths=np.asarray([1, 9, 9, 1]))
    assert found.policy[0] == 0
    assert found.policy[3] > found.policy[2] > found.policy[1]
    assert not np.isnan(found.length_reward[0])


def test_accuracies_that_are_absent_enter_no_mean():
    options = ShapingOptions(
        length_mode="term", length_calibration=LengthCalibration(warmup_steps=0, min_samples=1)
    )
    shaping = Shaping(options)
    accuracy = np.asarray([0.2, 0.6, np.nan, np.nan])
    shaping.advantages(np.zeros(4), 4, lengths=np.asarray([5, 50, 7, 7]), accuracy=accuracy)
    assert (shaping.length_thresholds == 50).all()  # with two zeros the mean would be 0.2


def test_without_targets_there_is_no_length_shaping():
    shaping = Shaping(ShapingOptions(length_mode="reward"))
    assert not shaping.options.shapes_length
    found = shaping.advantages(np.asarray([0.0, 1.0]), 2)
    assert found.length_reward is None
    assert set(shaping.metrics()) == {"entropy_weight/all"}


def test_metrics_name_what_there_is_of_each_task():
    options = ShapingOptions(tasks=TASKS, length_targets=TARGETS, entropy_weights={"ocr": 0.5})
    assert Shaping(options).metrics() == {
        "length_target/low/ocr": 8,
        "length_target/high/ocr": 12,
        "length_target/low/vqa": 0,
        "length_target/high/vqa": 10,
        "entropy_weight/maths": 0.02,
        "entropy_weight/ocr": 0.5,
        "entropy_weight/vqa": 0.02,
    }


def test_arrays_of_any_library_are_copied_to_the_host(library):
    step = step_of(0, np.dtype(library.dtype))
    step["lengths"] = step["lengths"].astype(library.dtype)
    options = ShapingOptions(tasks=TASKS, length_targets=TARGETS, reward_weights=WEIGHTS)
    given = {name: library.array(array) for name, array in step.items()}
    found, expected = shape(Shaping(options), given), shape(Shaping(options), step)
    for name in ("policy", "length", "length_reward"):
        assert isinstance(getattr(found, name), np.ndarray)
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture
def registered():
    before = dict(g2rpo.ESTIMATORS)
    yield g2rpo.register_estimator
    g2rpo.ESTIMATORS.clear()
    g2rpo.ESTIMATORS.update(before)


def test_an_estimator_of_ones_own_gets_what_it_takes(registered):
    seen = {}

    @registered("of-sums")
    def of_sums(rewards, groups, tasks=None, *, power=1):
        seen["sums"] = rewards
        return rewards**power

    @registered("of-components")
    def of_components(rewards, groups, tasks=None, *, lengths, component_weights=None):
        seen["components"], seen["weights"] = rewards, component_weights
        seen["lengths"] = lengths
        return rewards[:, 0] if rewards.ndim == 2 else rewards

    assert not takes_components(of_sums)
    rewards = np.asarray([[1.0, 2.0], [3.0, np.nan], [0.0, 1.0]])
    lengths, given = np.asarray([4, 5, 6]), {"reward_weights": (1.0, 0.5)}
    options = ShapingOptions(estimator="of-sums", estimator_options={"power": 2}, **given)
    found = Shaping(options).advantages(rewards, 3, lengths=lengths).policy
    assert found.tolist() == [4.0, 9.0, 0.25]
    assert seen["sums"].tolist() == [2.0, 3.0, 0.5]
    options = ShapingOptions(estimator="of-components", **given)
    Shaping(options).advantages(rewards, 3, lengths=lengths)
    assert seen["components"].shape == (3, 2)
    assert seen["weights"] == [1.0, 0.5]
    assert seen["lengths"].tolist() == [4, 5, 6]


def test_one_component_of_weight_one_is_the_reward_itself():
    rewards = np.random.default_rng(0).random((12, 1))
    found = Shaping(ShapingOptions()).advantages(rewards, 4).policy
    np.testing.assert_array_equal(found, g2rpo.gaussian_advantages(rewards[:, 0], 4))


@pytest.mark.parametrize("mode", ["term", "reward"])
def test_no_rollouts_have_no_advantages(mode):
    target = LengthTarget(0, 1, 2, 3)
    options = ShapingOptions(length_mode=mode, length_targets={"all": target})
    none = np.zeros(0)
    labels = none.astype(int)
    for rewards in (none, np.zeros((0, 2))):
        found = Shaping(options).advantages(rewards, labels, labels, lengths=none, accuracy=none)
        assert found.policy.shape == found.length_reward.shape == (0,)
        assert (found.length is None) == (mode == "reward")


def test_arguments_that_are_missing_or_outside_are_named():
    step = step_of(0)
    shaping = Shaping(ShapingOptions(tasks=TASKS, length_targets=TARGETS))
    with pytest.raises(ValueError, match="lengths must be given, in tokens: length shaping or"):
        shape(shaping, step, lengths=None)
    with pytest.raises(ValueError, match="accuracy must be given: only the lengths of right"):
        shape(shaping, step, accuracy=None)
    with pytest.raises(ValueError, match="'opo' takes them"):
        shape(Shaping(ShapingOptions(tasks=TASKS, estimator="opo")), step, lengths=None)
    for name in ("lengths", "accuracy", "absent", "tasks"):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(48,\), got \(47,\)"):
            shape(shaping, step, **{name: step[name][1:]})
    with pytest.raises(TypeError, match="tasks must hold integer labels"):
        shape(shaping, step, tasks=step["tasks"] / 1)
    with pytest.raises(ValueError, match=r"tasks must be in 0 .. 1, the places of a, b, got 2"):
        shape(Shaping(ShapingOptions(tasks=("a", "b"))), step)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"tasks": "ocr"}, TypeError, "tasks must be a list of names, got the string 'ocr'"),
        ({"tasks": ()}, ValueError, "tasks must name each task once, got none"),
        ({"tasks": ("a", "a")}, ValueError, "tasks must name each task once, got a, a"),
        ({"estimator": "gausian"}, ValueError, "estimator: unknown estimator .* 'gaussian'"),
        ({"estimator_options": {"tie": 1}}, TypeError, "estimator_options of 'gaussian': .*'tie'"),
        (
            {"estimator_options": {"component_weights": [1]}},
            ValueError,
            "estimator_options must not have component_weights: set reward_weights",
        ),
        ({"length_mode": "on"}, ValueError, "length_mode must be one of 'term', 'reward', 'off'"),
        ({"length_weight": -1}, ValueError, "length_weight must be a number of 0 or more, got -1"),
        (
            {"length_targets": {"all": (0, 1, 2, 3)}},
            TypeError,
            "length_targets of 'all' must be a LengthTarget",
        ),
        ({"length_targets": {"al": 0}}, ValueError, "length_targets: unknown task 'al'; did you"),
        ({"entropy_control": "on"}, ValueError, "entropy_control must be one of"),
        ({"entropy_low": 2}, ValueError, "entropy_low, entropy_high: .*0 <= low <= high"),
        ({"entropy_low": None}, TypeError, r"entropy_low, entropy_high must be \[low, high\]"),
        ({"entropy_bounds": {"all": (1, 0)}}, ValueError, "entropy_bounds of 'all': .*low <="),
        ({"entropy_bounds": {"all": (1,)}}, ValueError, r"entropy_bounds of 'all' must be \[low"),
        ({"entropy_bounds": {"all": 1}}, TypeError, r"entropy_bounds of 'all' must be \[low, h"),
        ({"entropy_weights": {"all": None}}, ValueError, "entropy_weights of 'all' must be a num"),
        ({"task_weights": {"all": float("inf")}}, ValueError, "task_weights of 'all' must be"),
        ({"task_weights": {"all": True}}, ValueError, "task_weights of 'all' must be"),
        ({"task_weights_adapt": -1}, ValueError, "task_weights_adapt must be a whole number"),
        ({"task_weights_rate": 2}, ValueError, "rate must be at most 1, got 2"),
        ({"task_weights_low": 2}, ValueError, "bounds must have 0 < low <= 1 <= high, got low=2"),
    ],
)
def test_options_out_of_range(options, error, text):
    with pytest.raises(error, match=f"^{text}"):
        ShapingOptions(**options)


def test_errors_name_the_keys_of_the_configuration():
    keys = {"entropy_bounds": "my.bounds", "estimator_options": "my.options", "tasks": "my.tasks"}
    for options, text in (
        ({"entropy_bounds": {"al": (0, 1)}}, "^my.bounds: unknown task 'al'"),
        ({"entropy_bounds": {"all": (1, 0)}}, "^my.bounds of 'all'"),
        ({"estimator": "grpo", "estimator_options": {"epsilon": -1}}, "^my.options of 'grpo'"),
        ({"tasks": ()}, "^my.tasks must"),
    ):
        with pytest.raises(ValueError, match=text):
            ShapingOptions(keys=keys, **options)
    with pytest.raises(ValueError, match=r"^my\.options must not have task_weights: set factors"):
        check_estimator("grpo", {"task_weights": [1]}, keys={**keys, "task_weights": "factors"})


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dcay": 1}, ValueError, "calibration: unknown option 'dcay'; did you mean 'decay'"),
        ({"decay": 2}, ValueError, r"calibration: decay must be in \[0, 1\], got 2"),
        ({"warmup_steps": -1}, ValueError, "calibration: warmup_steps must be 0 or more, got -1"),
        ({"quantiles": (0.5, 0.1, 0.7, 1)}, ValueError, "calibration: quantiles must be"),
        ({"min_samples": None}, TypeError, "calibration: "),
    ],
)
def test_calibrations_out_of_range(options, error, text):
    with pytest.raises(error, match=f"^{text}"):
        LengthCalibration.of(options, key="calibration")


def test_targets_as_configurations_write_them():
    found = length_targets({"a": "reasoning", "b": "direct", "c": [0, 1, 2, float("inf")]}, 640)
    assert found == {
        "a": LengthTarget.reasoning(640),
        "b": LengthTarget.direct(640),
        "c": LengthTarget(0, 1, 2, float("inf")),
    }
    for value, error, text in (
        ("short", ValueError, r"must be \[minimum, .*\] in tokens, reasoning or direct, got 'sh"),
        ([1, 2], ValueError, r"must be \[minimum, low, high, maximum\] .*got \[1, 2\]"),
        ([1, 2, 3, "x"], TypeError, "must be .*got"),
        (5, TypeError, "must be .*got 5"),
        ([3, 2, 1, 0], ValueError, ": a length target must have 0 <= minimum"),
    ):
        with pytest.raises(error, match=f"^targets of 'a'.*{text}"):
            length_targets({"a": value}, 640, key="targets")
    with pytest.raises(ValueError, match="in tokens, got 'direct'"):
        length_targets({"a": "direct"})


def test_sums_of_components():
    rewards = np.asarray([[1.0, 2.0], [np.nan, 2.0], [np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(total_rewards(rewards[:, 1]), [2, 2, np.nan])
    np.testing.assert_array_equal(total_rewards(rewards), [3, 2, np.nan])
    np.testing.assert_array_equal(total_rewards(rewards, [2, 0.5]), [3, 1, np.nan])
    assert total_rewards(rewards, [2, 0.5]).dtype == np.float32


def test_the_loop_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "core.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/reference/core.md", "exec"), names)
    assert names["weighted"].policy.shape == names["weighted"].length.shape == (6,)
    assert names["shaping"].entropy_weights[1] > 0.02 > names["shaping"].entropy_weights[0]
