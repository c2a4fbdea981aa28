"""Metrics of rollouts, over all of them and by task, on every library."""

import math
import statistics

import numpy as np
import pytest

from g2rpo import rollout_metrics

NAN = float("nan")
REWARDS = [0.0, 1.0, 0.5, 0.5, NAN, NAN, 1.0, NAN, 0.25, 0.75]
GROUPS = [7, 7, 3, 3, 5, 5, 1, 1, 9, 9]
TASKS = [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
LENGTHS = [5, 9, 2, 2, 3, 8, 4, 4, 6, 7]
CLIPPED = [length > 7 for length in LENGTHS]
PARTS = [1.0, NAN, 0.5, 1.0, NAN, NAN, 0.0, NAN, 0.25, 0.25]


def oracle(rows):
    """Return the metrics of rollouts by the definitions, one by one."""

    def present(values):
        return [values[row] for row in rows if not math.isnan(values[row])]

    def mean(values):
        return statistics.fmean(values) if values else NAN

    of_group = {
        group: [r for r, g in zip(REWARDS, GROUPS, strict=True) if g == group and r == r]
        for group in GROUPS
    }
    spreads = [statistics.pstdev(of_group[GROUPS[row]]) for row in rows if of_group[GROUPS[row]]]
    lengths = [LENGTHS[row] for row in rows]
    return {
        "reward": mean(present(REWARDS)),
        "reward_std": mean(spreads),
        "frac_reward_zero_std": mean([len(set(of_group[GROUPS[row]])) < 2 for row in rows]),
        "completions/clipped_ratio": mean([CLIPPED[row] for row in rows]),
        "rewards/part/mean": mean(present(PARTS)),
        "rewards/part/std": statistics.pstdev(present(PARTS)),
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
    }


def test_metrics_are_those_of_their_definitions(library):
    rewards, groups, tasks, lengths, clipped, parts = map(
        library.array, (REWARDS, GROUPS, TASKS, LENGTHS, CLIPPED, PARTS)
    )
    overall, by_task = rollout_metrics(
        rewards, groups, tasks, lengths=lengths, clipped=clipped,
        names=["a", "b", "without rollouts"], components={"part": parts},
    )  # fmt: skip
    assert overall.pop("num_tokens") == sum(LENGTHS)
    assert overall == pytest.approx(oracle(range(10)), rel=1e-6)
    rows = [[row for row in range(10) if TASKS[row] == task] for task in (0, 1)]
    assert list(by_task) == ["a", "b"]
    assert by_task["a"] == pytest.approx(oracle(rows[0]), rel=1e-6)
    assert by_task["b"] == pytest.approx(oracle(rows[1]), rel=1e-6)


def test_a_number_for_groups_is_consecutive_rollouts_and_absence_is_nan(library):
    options = {"lengths": library.array([1, 2]), "clipped": library.array([False, True])}
    overall, by_task = rollout_metrics(library.array([NAN, NAN]), 2, **options)
    assert math.isnan(overall["reward"])
    assert math.isnan(overall["reward_std"])
    assert overall["frac_reward_zero_std"] == 1
    assert by_task == {}
    infinite, _ = rollout_metrics(library.array([0.0, np.inf]), 2, **options)
    assert math.isnan(infinite["reward_std"])


@pytest.mark.parametrize("task", [-1, 2])
def test_a_task_without_a_name_is_refused(task):
    ones = np.ones(2, np.int64)
    with pytest.raises(ValueError, match=r"tasks must be indices of the 2 names, got .*"):
        rollout_metrics(
            np.ones(2), 2, np.asarray([0, task]), lengths=ones, clipped=ones > 1, names=["a", "b"]
        )
