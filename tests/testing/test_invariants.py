"""Every invariant holds for Gaussian advantages, and every check can fail."""

from functools import partial

import numpy as np
import pytest
from hypothesis import settings

from g2rpo import gaussian_advantages
from g2rpo.testing import INVARIANTS, Invariant, register_invariant, reward_batches
from g2rpo.testing import verify_advantages as verify

DTYPES = ["float32", "float64"]
# Each is tried on every invariant: 50, and 500 with --hypothesis-profile=nightly.
EXAMPLES = settings.default.max_examples // 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", INVARIANTS)
def test_every_invariant_holds_for_gaussian_advantages_to_the_last_bit(name, dtype):
    (result,) = verify(
        gaussian_advantages,
        invariants=[name],
        tolerance=0,
        dtype=dtype,
        batches=reward_batches(dtype=dtype),
    )
    assert result.holds, result.counterexample


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_invariant_holds_with_barycentres(dtype):
    fn = partial(gaussian_advantages, ties="barycentre")
    for batches in (None, reward_batches(dtype=dtype)):
        results = verify(fn, tolerance=0, dtype=dtype, batches=batches, max_examples=EXAMPLES)
        assert [str(result.counterexample) for result in results if not result.holds] == []


def by_task(values, tasks):
    return [values[tasks == task] for task in np.unique(tasks)]


def live(rewards, groups):
    out = np.zeros(len(rewards), dtype=bool)
    for group in np.unique(groups):
        here = (groups == group) & ~np.isnan(rewards)
        out[here] = here.any() and rewards[here].min() < rewards[here].max()
    return out


def scaled(values, rewards, groups, tasks):
    """Give every task variance 1 over its groups with signal."""
    for task in np.unique(tasks):
        own = (tasks == task) & live(rewards, groups)
        if own.any():
            values[own] /= np.std(values[own])
    return values


def switching(odd):
    """Both rules for ties keep every invariant; choosing by a forbidden criterion breaks one."""

    def fn(rewards, groups, tasks):
        out = gaussian_advantages(rewards, groups, tasks)
        other = gaussian_advantages(rewards, groups, tasks, ties="barycentre")
        for task in np.unique(tasks):
            if odd(rewards, groups, tasks, tasks == task):
                out[tasks == task] = other[tasks == task]
        return out

    return fn


def first_has_signal(rewards, groups, tasks, own):
    present = np.flatnonzero(own & ~np.isnan(rewards))
    return present.size > 0 and live(rewards, groups)[present[0]]


def first_of_a_block_gets_more(rewards, groups, tasks):
    out = gaussian_advantages(rewards, groups, tasks)
    for group in np.unique(groups):
        for reward in np.unique(rewards[groups == group]):
            block = np.flatnonzero((groups == group) & (rewards == reward))
            if len(block) > 1:
                out[block[0]] *= 1.1
                out[block[-1]] *= 0.9
    return scaled(out, rewards, groups, tasks)


def one_where_there_is_no_signal(rewards, groups, tasks):
    out = gaussian_advantages(rewards, groups, tasks)
    return np.where(live(rewards, groups) | np.isnan(rewards), out, 1.0)


def stretched(rewards, groups, tasks, *, centred):
    """Stretch large advantages: a skewed group no longer sums to 0."""
    out = gaussian_advantages(rewards, groups, tasks)
    out = np.sign(out) * np.abs(out) ** 1.05
    for task in np.unique(tasks) if centred else ():
        own = (tasks == task) & live(rewards, groups)
        if own.any():
            out[own] -= out[own].mean()
    return scaled(out, rewards, groups, tasks)


def infinite_for_infinite(rewards, groups, tasks):
    out = gaussian_advantages(rewards, groups, tasks)
    return np.where(np.isinf(rewards), rewards, out)


def absent_is_worst(rewards, groups, tasks):
    return gaussian_advantages(np.nan_to_num(rewards, nan=-1e9), groups, tasks)


# Functions that break one invariant, and those that follow from it: a function that breaks ties
# depends on positions, and a task sums to 0 if its groups do.
WRONG = {
    "permutation": (switching(first_has_signal), set()),
    "relabelling": (switching(lambda r, g, t, own: t[own][0] > 2), set()),
    "increasing-maps": (
        switching(lambda r, g, t, own: np.nanmax(np.abs(r[own]), initial=0) > 20),
        set(),
    ),
    "ties": (first_of_a_block_gets_more, {"permutation"}),
    "no-signal": (
        one_where_there_is_no_signal,
        {"zero-sum", "sign", "task-mean", "antisymmetry"},
    ),
    "zero-sum": (partial(stretched, centred=True), set()),
    "sign": (lambda r, g, t: -gaussian_advantages(r, g, t), set()),
    "task-isolation": (switching(lambda r, g, t, own: live(r, g)[~own].any()), set()),
    "task-mean": (partial(stretched, centred=False), {"zero-sum"}),
    "task-variance": (partial(gaussian_advantages, task_stage=None), set()),
    "finite": (infinite_for_infinite, set()),
    "antisymmetry": (
        switching(lambda r, g, t, own: np.sign(gaussian_advantages(r[own], g[own])).sum() > 0),
        set(),
    ),
    "absent": (absent_is_worst, set()),
}


@pytest.mark.parametrize("name", INVARIANTS)
def test_every_check_can_fail_with_a_small_counterexample(name):
    fn, _ = WRONG[name]
    (result,) = verify(fn, invariants=[name], max_examples=300)
    assert not result.holds
    assert len(result.counterexample.batch.rewards) <= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", INVARIANTS)
def test_a_function_made_to_break_one_invariant_breaks_no_other(name):
    fn, implied = WRONG[name]
    others = [other for other in INVARIANTS if other not in {name} | implied]
    results = verify(fn, invariants=others, max_examples=EXAMPLES)
    assert [r.invariant.name for r in results if not r.holds] == []
    for other in sorted(implied):
        (result,) = verify(fn, invariants=[other], max_examples=300)
        assert not result.holds, other


def test_a_registered_invariant_is_checked():
    def check(subject, batch):
        from g2rpo.testing import Violation

        advantages = subject(batch)
        if np.abs(advantages).max() > 1.5:
            raise Violation("an advantage is beyond 1.5", advantage=advantages)

    bounded = Invariant("bounded", "No advantage is beyond 1.5", check)
    (result,) = verify(gaussian_advantages, invariants=[bounded])
    assert len(result.counterexample.batch.rewards) == 4  # 1.73 for one of four, 1.41 for three
    assert register_invariant(bounded) is bounded
    try:
        assert verify(lambda r, g: 0 * r, invariants=["bounded"])[0].holds
        with pytest.raises(ValueError, match="'bounded' is taken"):
            register_invariant(bounded)
    finally:
        del INVARIANTS["bounded"]
    with pytest.raises(ValueError, match="'' is empty"):
        register_invariant(Invariant("", "", check))
