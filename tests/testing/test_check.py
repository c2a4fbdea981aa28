"""Calls of advantage functions, and reports of violations."""

import numpy as np
import pytest

from g2rpo import ESTIMATORS, gaussian_advantages, grpo_advantages
from g2rpo.testing import (
    RewardBatch,
    Subject,
    Violation,
    check_advantages,
    reproduction,
    verify_advantages,
)
from g2rpo.testing.report import describe

BATCH = RewardBatch(np.asarray([0.0, 1.0]), np.asarray([3, 3]), np.asarray([0, 0]))


REPORT = """\
grpo_advantages breaks 1 of 2 invariants

task-variance: The groups with signal of a task have variance 1
the variance of task 0 over its groups with signal is 0.499999
  group  task  reward  advantage
      0     0       0  -0.707106
      0     0       1   0.707106"""


def test_a_report_shows_the_statement_and_the_batch():
    with pytest.raises(AssertionError) as raised:
        check_advantages(grpo_advantages, invariants=["task-variance", "finite"], waive=["finite"])
    assert str(raised.value) == REPORT


def test_equal_rows_of_a_long_table_become_one():
    rewards = np.asarray([1.0] + [0.0] * 40 + list(range(30)))
    labels = np.zeros(71, dtype=np.int64)
    text = describe("long", RewardBatch(rewards, labels, labels), {}).splitlines()
    assert text[:4] == [
        "long",
        "  rollouts  group  task  reward",
        "       1 x      0     0       1",
        "      41 x      0     0       0",
    ]
    assert text[-1] == "  ... and 11 rows more"


def test_waived_invariants_pass():
    check_advantages(grpo_advantages, waive=["increasing-maps", "task-variance", "finite"])


def test_a_verdict_is_holds_fails_or_waived():
    results = verify_advantages(
        grpo_advantages, invariants=["sign", "finite", "task-variance"], waive=["sign", "finite"]
    )
    assert [result.verdict for result in results] == ["holds", "waived", "fails"]
    assert [result.waived for result in results] == [True, True, False]


def test_the_same_seed_tries_the_same_batches():
    def tried(seed):
        batches = []

        def fn(rewards, groups):
            batches.append(rewards.tolist())
            return gaussian_advantages(rewards, groups)

        verify_advantages(fn, invariants=["zero-sum"], max_examples=20, seed=seed)
        return batches

    assert tried(0) == tried(0) != tried(1)
    assert len(tried(0)) == 20


def outcome(fn, **options):
    (result,) = verify_advantages(fn, invariants=["ties"], **options)
    return result.counterexample.message


def test_an_exception_of_the_function_is_a_violation():
    def fn(rewards, groups):
        if len(rewards) > 1:
            raise KeyError("no such\nprompt")
        return rewards

    (result,) = verify_advantages(fn, invariants=["ties"])
    assert result.counterexample.message == r"it raised KeyError: 'no such\nprompt'"
    assert len(result.counterexample.batch.rewards) == 2


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda r: r.tolist(), "it returned list, not an array of shape (1,)"),
        (lambda r: None, "it returned NoneType, not an array of shape (1,)"),
        (lambda r: r[None], "it returned shape (1, 1) for 1 rollouts"),
        (lambda r: r.mean(), "it returned shape () for 1 rollouts"),
        (lambda r: r * 1j, "it returned complex128, not real numbers"),
    ],
)
def test_a_result_other_than_a_real_vector_is_a_violation(returned, message):
    assert outcome(lambda rewards, groups: returned(rewards)) == message


def test_a_function_of_random_numbers_is_reported():
    generator = np.random.default_rng(0)
    message = outcome(lambda rewards, groups: generator.random(len(rewards)).round())
    assert message.startswith("equal inputs gave different results")


def test_a_function_takes_two_or_three_arguments():
    assert Subject(lambda rewards, groups: rewards)(BATCH).tolist() == [0, 1]
    assert Subject(lambda rewards, groups, tasks: tasks)(BATCH).tolist() == [0, 0]
    assert Subject(lambda *arrays: arrays[1])(BATCH).tolist() == [3, 3]
    assert Subject(lambda r, g, *, scale=2: r * scale)(BATCH).tolist() == [0, 2]
    with pytest.raises(Violation, match="it raised TypeError"):
        Subject(lambda rewards: rewards)(BATCH)


def test_a_function_may_write_to_its_arguments():
    def fn(rewards, groups):
        rewards -= 5
        return rewards

    assert Subject(fn)(BATCH).tolist() == [-5, -4]
    assert BATCH.rewards.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_the_function_gets_arrays_of_the_library(library, dtype):
    seen = []

    def fn(rewards, groups, tasks):
        seen.append((type(rewards).__module__.partition(".")[0], str(rewards.dtype)))
        return gaussian_advantages(rewards, groups, tasks)

    assert Subject(fn, library=library, dtype=dtype)(BATCH).tolist() == [-1, 1]
    ((module, precision),) = seen
    assert module == {"numpy": "numpy", "torch": "torch", "jax": "jaxlib"}[library]
    assert precision.endswith(dtype)


def test_tensors_have_the_verdicts_of_numpy_arrays():
    options = {"library": "torch", "dtype": "float32", "max_examples": 20}
    check_advantages(ESTIMATORS["gaussian"], **options)
    message = outcome(lambda rewards, groups: rewards.numpy() * np.arange(len(rewards)), **options)
    assert message == "equal rewards of a group differ in advantage"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"invariants": ["sing"]}, "unknown invariant 'sing'; did you mean 'sign'?"),
        ({"waive": ["tie"]}, "unknown invariant 'tie'; did you mean 'ties'?"),
        ({"invariants": ["sign"], "waive": ["ties"]}, r"'ties' \(there are: sign\)"),
        ({"max_examples": 0}, "max_examples must be positive, got 0"),
        ({"tolerance": -1.0}, r"tolerance must be in \[0, 1\), got -1.0"),
        ({"library": "cupy"}, "library must be one of 'numpy', 'torch', 'jax', got 'cupy'"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64', got 'float16'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        verify_advantages(gaussian_advantages, **options)


def test_an_object_that_is_not_callable_is_refused():
    with pytest.raises(TypeError, match="fn must be callable, got int"):
        check_advantages(3)


def test_the_code_of_a_reproduction_creates_the_same_arrays():
    rewards = np.asarray([0.1, -np.inf, np.inf, np.nan])
    text = reproduction((rewards, np.asarray([0, 0, -7, 0])), "list_of")
    given = eval(text, {"np": np, "list_of": lambda r, g: (r, g)})
    np.testing.assert_array_equal(given[0], rewards)
    assert given[1].tolist() == [0, 0, -7, 0]
