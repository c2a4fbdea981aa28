import inspect
from functools import partial

import numpy as np
import pytest

import g2rpo
from g2rpo_cli.comparison import named_estimator
from g2rpo_cli.comparison.estimators import estimator_options, refuse_decoupled
from g2rpo_trainer.errors import RunError

RNG = np.random.default_rng(0)
REWARDS = RNG.random(40).round(1)
GROUPS = np.arange(40) // 5
TASKS = np.arange(40) // 20
LENGTHS = RNG.integers(1, 90, 40)


@pytest.mark.parametrize("name", g2rpo.ESTIMATORS)
def test_every_option_listed_is_one_that_the_estimator_takes(name):
    options = dict(estimator_options(name))
    estimator = g2rpo.ESTIMATORS[name]
    if options.pop("lengths", None) is not None:
        estimator = partial(estimator, lengths=LENGTHS)
    for key, parameter in options.items():
        given = estimator(REWARDS, GROUPS, TASKS, **{key: parameter.default})
        np.testing.assert_array_equal(given, estimator(REWARDS, GROUPS, TASKS))


#: Estimator: the function to which it hands its options, and those that it leaves out.
HANDED_TO = {
    "grpo": (g2rpo.grpo_advantages, set()),
    "grpo-batch": (g2rpo.grpo_advantages, {"scale"}),
    "dr-grpo": (g2rpo.grpo_advantages, {"scale", "epsilon"}),
    "rloo": (g2rpo.rloo_advantages, set()),
    "gdpo": (g2rpo.gdpo_advantages, set()),
    "ema-grpo": (g2rpo.ema_grpo_advantages, set()),
    "reinforce++": (g2rpo.reinforce_plus_plus_advantages, {"group_baseline"}),
    "reinforce++-baseline": (g2rpo.reinforce_plus_plus_advantages, {"group_baseline"}),
    "pass@k": (g2rpo.pass_at_k_advantages, set()),
}


@pytest.mark.parametrize("name", HANDED_TO)
def test_signatures_show_what_is_neither_fixed_nor_without_effect(name):
    function, left_out = HANDED_TO[name]
    parameters = inspect.signature(function).parameters.values()
    taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert left_out <= taken
    assert set(estimator_options(name)) == taken - left_out | {"component_weights"}
    if "scale" in left_out:
        with pytest.raises(TypeError, match="scale"):
            g2rpo.ESTIMATORS[name](REWARDS, GROUPS, TASKS, scale="group")
    if "epsilon" in left_out:
        wide = g2rpo.ESTIMATORS[name](REWARDS, GROUPS, TASKS, epsilon=1.0)
        np.testing.assert_array_equal(wide, g2rpo.ESTIMATORS[name](REWARDS, GROUPS, TASKS))


def test_options_reach_the_estimator():
    text = "gaussian:task_stage=match,ties=barycentre"
    found = named_estimator(text, ["resolution=0.2"])(REWARDS, GROUPS, TASKS)
    expected = g2rpo.gaussian_advantages(
        REWARDS, GROUPS, TASKS, task_stage="match", ties="barycentre", resolution=0.2
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", ["null", "none", "", "~"])
def test_ways_to_say_nothing(value):
    found = named_estimator("gaussian", [f"task_stage={value}"])(REWARDS, GROUPS, TASKS)
    np.testing.assert_array_equal(found, g2rpo.match_gaussian(REWARDS, GROUPS))
    found = named_estimator("grpo", ["scale=none"])(REWARDS, GROUPS, TASKS)
    np.testing.assert_array_equal(found, g2rpo.grpo_advantages(REWARDS, GROUPS, scale="none"))


def test_numbers_as_yaml_reads_them():
    found = named_estimator("grpo:epsilon=1e-1")(REWARDS, GROUPS, TASKS)
    np.testing.assert_array_equal(found, g2rpo.grpo_advantages(REWARDS, GROUPS, epsilon=0.1))


def test_components():
    rewards = np.stack([REWARDS, -REWARDS[::-1]], axis=1)
    found = named_estimator("gaussian", component_weights=[1, 2], decoupled=True)
    expected = g2rpo.gaussian_advantages(
        rewards, GROUPS, TASKS, component_weights=[1, 2], decoupled=True
    )
    np.testing.assert_array_equal(found(rewards, GROUPS, TASKS), expected)
    found = named_estimator("rloo", component_weights=[1, 2], decoupled=True)
    expected = g2rpo.rloo_advantages(rewards @ [1, 2], GROUPS)
    np.testing.assert_allclose(found(rewards, GROUPS, TASKS), expected, atol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gausian",
            "unknown estimator 'gausian'; did you mean 'gaussian'? (there are: "
            "grpo, grpo-batch, dr-grpo, rloo, gdpo, ema-grpo, reinforce++, reinforce++-baseline, "
            "opo, pass@k, gaussian)",
        ),
        (
            "gaussian:taskstage=match",
            "estimator 'gaussian' has no option 'taskstage'; did you mean 'task_stage'? "
            "(it takes task_stage, ties, resolution)",
        ),
        ("rloo:epsilon=1", "estimator 'rloo' has no option 'epsilon' (it takes none)"),
        ("gdpo:epsilon", "option 'epsilon' must be KEY=VALUE, such as task_stage=match"),
        ("gdpo:epsilon=x", "option 'epsilon' is 'x', but must be a number"),
        ("gdpo:epsilon=true", "option 'epsilon' is True, but must be a number"),
        ("gaussian:resolution=x", "option 'resolution' is 'x', but must be a number or null"),
        ("gaussian:decoupled=true", "option 'decoupled' has a flag of its own, --decoupled"),
        ("opo:lengths=1", "option 'lengths' has a flag of its own, --length"),
        ("pass@k:k=many", "option 'k' is 'many', but must be a whole number"),
        ("gdpo:component_weights=1", "option 'component_weights' has a flag of its own, --weight"),
    ],
)
def test_bad_option(text, message):
    with pytest.raises(RunError) as error:
        named_estimator(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gaussian:task_stage=foo",
            "estimator 'gaussian': task_stage must be one of "
            "'standardize', 'match', 'match-all', null, got 'foo'",
        ),
        ("gaussian:resolution=-1", "estimator 'gaussian': resolution must be finite and positive"),
        ("pass@k:k=0", "estimator 'pass@k': k must be at least 1, got 0"),
        ("ema-grpo:decay=2", "estimator 'ema-grpo': decay must be in [0, 1], got 2.0"),
    ],
)
def test_bad_value(text, message):
    estimator = named_estimator(text)
    with pytest.raises(RunError) as error:
        estimator(REWARDS, GROUPS, TASKS)
    assert str(error.value).startswith(message)


def test_error_that_no_option_caused_passes_through():
    with pytest.raises(TypeError, match="groups must hold integer labels"):
        named_estimator("grpo")(REWARDS, REWARDS, TASKS)


def test_registered_estimator_takes_any_option_if_it_says_so(monkeypatch):
    monkeypatch.setitem(
        g2rpo.ESTIMATORS, "times", lambda rewards, groups, tasks, **options: rewards * options["by"]
    )
    found = named_estimator("times:by=3")(REWARDS, GROUPS, TASKS)
    np.testing.assert_array_equal(found, REWARDS * 3)


def test_decoupled_is_for_those_who_know_it():
    refuse_decoupled("gaussian:ties=barycentre")
    with pytest.raises(RunError, match="--decoupled: estimator 'grpo' has no such option"):
        refuse_decoupled("grpo")


def test_lengths_reach_the_estimator_that_takes_them_and_no_other():
    found = named_estimator("opo")(REWARDS, GROUPS, TASKS, LENGTHS)
    expected = g2rpo.opo_advantages(REWARDS, GROUPS, lengths=LENGTHS)
    np.testing.assert_array_equal(found, expected)
    found = named_estimator("rloo")(REWARDS, GROUPS, TASKS, LENGTHS)
    np.testing.assert_array_equal(found, g2rpo.rloo_advantages(REWARDS, GROUPS))
    with pytest.raises(RunError, match="estimator 'opo' needs the responses' lengths in tokens"):
        named_estimator("opo")(REWARDS, GROUPS, TASKS)
