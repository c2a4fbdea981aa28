"""A recorded number is found again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence.cells import measure
from benchmarks.evidence.distribution import ESTIMATORS, KINDS, MEASURED, draw_rewards
from benchmarks.evidence.distribution import measure as measure_distances
from benchmarks.evidence.policies import cold_start
from benchmarks.evidence.questions import QUESTIONS
from benchmarks.evidence.world import World

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "benchmarks/results/evidence.json"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def start():
    world = World(range(2))
    return world, cold_start(world)


@pytest.mark.parametrize(
    ("question", "label"),
    [("equity", "gaussian, token mean"), ("equity", "grpo, both"), ("ties", "noise 0.02")],
)
def test_rewards_of_two_seeds_are_the_recorded_ones(question, label, record, start):
    found = measure(QUESTIONS[question].settings[label], *start, record["steps"])
    expected = record["rewards"][question][label][:2]
    np.testing.assert_allclose(found["tasks"].mean(axis=1), expected, atol=6e-4)


def test_record_has_every_setting_of_every_question(record):
    for name, question in QUESTIONS.items():
        assert list(record["rewards"][name]) == list(question.settings)
        assert {len(each) for each in record["rewards"][name].values()} == {record["seeds"]}


@pytest.mark.parametrize("task", MEASURED)
def test_drawn_rewards_have_the_measured_shares(task):
    rewards = draw_rewards(task, 8, np.random.default_rng(0))
    values, shares = (np.asarray(each) for each in MEASURED[task])
    assert 100 * (rewards == 0).mean() == pytest.approx(shares[0], abs=0.1)
    assert rewards.mean() == pytest.approx((values * shares).sum() / shares.sum(), abs=2e-3)
    if task != "grounding":  # whose values are spread between the measured ones
        found = [(rewards == value).mean() for value in values]
        np.testing.assert_allclose(100 * np.asarray(found), shares, atol=0.1)
    # Responses to one prompt are alike: it moves the mean of its group.
    assert rewards.mean(axis=1).var() > 2 * rewards.var() / 8


def test_distances_fall_with_the_group_size():
    small, large = (measure_distances(size, 0) for size in (4, 32))
    assert small.shape == (len(ESTIMATORS), len(KINDS), 2)
    matched = [name.startswith("gaussian") for name in ESTIMATORS]
    assert (large[matched] < small[matched]).all()


def test_the_page_quotes_intervals_of_the_tables():
    interval = re.compile(r"[+-]0\.\d{4} \[[+-]0\.\d{4}, [+-]0\.\d{4}\]")
    quoted = interval.findall((ROOT / "docs/evidence.md").read_text())
    tables = (RECORD.with_suffix(".md"), RECORD.with_name("builtin.md"))
    measured = {found for table in tables for found in interval.findall(table.read_text())}
    assert len(quoted) > 50
    assert set(quoted) <= measured
