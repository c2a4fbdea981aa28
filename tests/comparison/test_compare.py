import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import g2rpo
import g2rpo_cli.comparison
from g2rpo.diagnostics import normality, outlier_influence, squared_shares
from g2rpo_cli.comparison import (
    TOPOLOGIES,
    RewardTable,
    compare,
    figure_rewards,
    read_rewards,
    topology_rewards,
)


@pytest.fixture(scope="module")
def builtin():
    return compare(topology_rewards(groups=32))


def table_of(rewards, groups, tasks=None, names=("all",)):
    groups = np.asarray(groups)
    tasks = np.zeros_like(groups) if tasks is None else np.asarray(tasks)
    return RewardTable(np.asarray(rewards, dtype=float), groups, tasks, names)


def test_every_estimator_by_default(builtin):
    assert list(builtin.estimators) == list(g2rpo.ESTIMATORS)


def test_numbers_are_those_of_the_core(builtin):
    table, seen = builtin.table, builtin.has_signal
    for name, report in builtin.estimators.items():
        lengths = {"lengths": table.lengths} if name == "opo" else {}
        advantages = g2rpo.ESTIMATORS[name](table.rewards, table.groups, table.tasks, **lengths)
        np.testing.assert_array_equal(report.advantages, advantages)
        of = normality(advantages[seen], table.tasks[seen])
        # Advantages that are all 0 have no skewness: NaN equals NaN here.
        np.testing.assert_equal([task.normality for task in report.tasks], list(of.values()))
        shares = squared_shares(advantages, table.tasks)
        assert [task.share for task in report.tasks] == list(shares.values())
        sizes = [math.sqrt(np.mean(advantages[seen & (table.tasks == t)] ** 2)) for t in range(4)]
        expected = max(sizes) / min(sizes) if min(sizes) else math.inf
        assert report.equity == pytest.approx(expected)
        largest = [np.abs(advantages[table.tasks == t]).max() for t in range(4)]
        assert [task.largest for task in report.tasks] == largest


def test_outlier_is_a_reward_alone_at_the_top_of_its_group(builtin):
    table = builtin.table
    best = []
    for group in np.unique(table.groups):
        rows = np.flatnonzero(table.groups == group)
        rows = rows[np.argsort(table.rewards[rows])]
        if table.rewards[rows[-1]] > table.rewards[rows[-2]]:
            best.append(int(rows[-1]))
    best.sort(key=lambda row: table.rewards[row])
    index = best[len(best) // 2]
    for name in ("grpo", "dr-grpo", "ema-grpo"):
        expected = outlier_influence(
            g2rpo.ESTIMATORS[name], table.rewards, table.groups, table.tasks, index=index
        )
        assert builtin.estimators[name].influence == expected


def test_what_the_built_in_rewards_are_to_show(builtin):
    gaussian, grpo, dr_grpo = (builtin.estimators[n] for n in ("gaussian", "grpo", "dr-grpo"))
    assert gaussian.influence == (0, 0, 0)
    assert grpo.influence.group > 0.1
    assert dr_grpo.influence.group > 1e3
    assert gaussian.equity == pytest.approx(1)
    assert dr_grpo.equity > 3
    for task in gaussian.tasks:
        assert task.normality.variance == pytest.approx(1)
        assert task.largest < 2.5


def test_rewards_before_any_estimator():
    nan, inf = math.nan, math.inf
    rewards = [1, 1, 0, 1, inf, 0, nan, nan, 2, 3]
    result = compare(
        table_of(rewards, [0, 0, 1, 1, 2, 2, 3, 3, 4, 5], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2], "abc")
    )
    first, second, third = map(dataclasses.asdict, result.tasks)
    zero = {"absent": 0, "infinite": 0}
    assert first == {"rewards": 4, "groups": 2, "groups_without_signal": 1, "share": 0.5, **zero}
    assert second == {
        "rewards": 2,
        "groups": 1,
        "groups_without_signal": 0,
        "share": 0.5,
        "absent": 2,
        "infinite": 1,
    }
    assert third == {"rewards": 2, "groups": 2, "groups_without_signal": 2, "share": 0.0, **zero}
    assert result.has_signal.tolist() == [False] * 2 + [True] * 4 + [False] * 4


def test_infinite_rewards_show_as_nan():
    result = compare(table_of([0, 1, math.inf, 0, 1, 2], [0, 0, 0, 1, 1, 1]))
    assert result.estimators["grpo"].tasks[0].undefined == 3
    assert result.estimators["grpo-batch"].tasks[0].normality is None
    assert math.isnan(result.estimators["grpo-batch"].tasks[0].largest)
    assert result.estimators["gaussian"].tasks[0].undefined == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rewards",
    [[], [1.0], [math.nan] * 3, [math.inf, -math.inf], [5.0] * 4, [1e308, -1e308, 0, 1]],
)
def test_unusual_tables(rewards):
    for groups in (np.zeros(len(rewards), int), np.arange(len(rewards))):
        result = compare(table_of(rewards, groups))
        json.dumps(result.to_json(values=True), allow_nan=False)
        for report in result.estimators.values():
            assert report.advantages.shape == (len(rewards),)


def test_task_without_rows():
    result = compare(table_of([0, 1], [0, 0], [1, 1], ("empty", "full")), ["gaussian"])
    empty, full = result.estimators["gaussian"].tasks
    assert (empty.normality, empty.share, empty.undefined) == (None, 0.0, 0)
    assert full.share == 1


def test_components_and_functions():
    rng = np.random.default_rng(0)
    table = dataclasses.replace(
        table_of(np.zeros(20), np.arange(20) // 5), rewards=rng.random((20, 2))
    )
    result = compare(table, component_weights=[1, 3], decoupled=True)
    expected = g2rpo.gaussian_advantages(
        table.rewards, table.groups, table.tasks, component_weights=[1, 3], decoupled=True
    )
    np.testing.assert_array_equal(result.estimators["gaussian"].advantages, expected)
    assert result.estimators["dr-grpo"].influence.group > 1e3
    own = compare(table, {"first": lambda rewards, groups, tasks: rewards[:, 0]})
    np.testing.assert_array_equal(own.estimators["first"].advantages, table.rewards[:, 0])
    assert own.estimators["first"].influence == (0, 0, 0)


def test_influence_can_be_left_out():
    def counted(rewards, groups, tasks):
        calls.append(1)
        return rewards

    calls = []
    result = compare(table_of([0, 1], [0, 0]), {"x": counted}, influence=False)
    assert len(calls) == 1
    assert all(math.isnan(change) for change in result.estimators["x"].influence)


def test_json_is_complete(builtin):
    content = builtin.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content) == {"source", "rewards", "tasks", "estimators"}
    assert list(content["tasks"]) == list(TOPOLOGIES)
    for name, report in builtin.estimators.items():
        of = content["estimators"][name]
        assert of["equity"] == in_json(report.equity)
        assert of["outlier_influence"] == report.influence._asdict()
        for task, numbers in zip(report.tasks, of["tasks"].values(), strict=True):
            normality = {key: in_json(x) for key, x in task.normality._asdict().items()}
            assert numbers == normality | {
                "largest": task.largest, "share": task.share, "undefined": 0,
            }  # fmt: skip


def in_json(number):
    return None if math.isnan(number) else "inf" if number == math.inf else number


def test_json_of_what_is_not_finite():
    result = compare(table_of([0, math.inf], [0, 0]), ["grpo", "gaussian"])
    content = result.to_json(values=True)
    assert content["values"]["rewards"] == [0.0, "inf"]
    assert content["values"]["tasks"] == ["all", "all"]
    assert content["values"]["advantages"] == {"grpo": [None, None], "gaussian": [-1.0, 1.0]}
    assert content["estimators"]["grpo"]["tasks"]["all"]["mean"] is None


def test_the_paper_s_figure():
    result = compare(figure_rewards(), ["gaussian:task_stage=null"])
    (report,) = result.estimators.values()
    expected = [
        [-0.3204, -0.3204, -0.3204, -0.3204, 1.2816],
        [-0.9030, -0.9030, 0.6020, 0.6020, 0.6020],
        [-0.6020, -0.6020, -0.6020, 0.5244, 1.2816],
        [-0.9030, -0.9030, 0.2622, 0.2622, 1.2816],
    ]
    np.testing.assert_allclose(report.advantages.reshape(4, 5), expected, atol=5e-5)
    assert result.table.task_names[2] == "0.1 0.1 0.1 0.2 1"


def test_topologies_are_what_their_names_say():
    table = topology_rewards()
    binary, dense, heavy, constant = (table.rewards[table.tasks == t] for t in range(4))
    assert set(binary) == {0, 1}
    assert dense.min() == 0 < dense.max() <= 1
    assert np.unique(dense).size > 800
    assert np.median(heavy) == 0
    assert heavy.max() > 20 * np.quantile(heavy, 0.9)
    assert np.std(np.sort(constant)[:-1]) < 0.003
    assert constant.max() == 3
    assert np.unique(table.groups).size == 4 * 128


def test_topologies_are_the_same_for_the_same_seed():
    again = topology_rewards()
    np.testing.assert_array_equal(topology_rewards().rewards, again.rewards)
    assert not np.array_equal(topology_rewards(seed=1).rewards, again.rewards)
    # A change of these is a change of the pictures and tables in the documentation.
    np.testing.assert_allclose(again.rewards[[0, 1024, 2053, 3072]], EXPECTED, rtol=1e-7)


EXPECTED = [1.0, 0.6852756910854236, 0.33376152, 0.822]


def test_table_from_a_file(write):
    result = compare(read_rewards(write("a.csv")), ["gaussian"])
    np.testing.assert_allclose(
        result.estimators["gaussian"].advantages, [-math.sqrt(1.5), 0, math.sqrt(1.5), 0, -1, 1]
    )


def test_reference_lists_every_public_name():
    page = Path(__file__).parents[2] / "docs" / "reference" / "comparison.md"
    listed = set(re.findall(r"\w+", page.read_text(encoding="utf-8")))
    assert [name for name in g2rpo_cli.comparison.__all__ if name not in listed] == []
