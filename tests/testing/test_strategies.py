"""Drawn batches have the documented properties, and every difficult case is drawn."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from g2rpo.testing import (
    KINDS,
    ORDINARY,
    RewardBatch,
    increasing_maps,
    integer_labels,
    reward_batches,
    rewards_of,
)

FINDING = settings(max_examples=3000, derandomize=True, database=None, deadline=None)
AT_ALL = settings(FINDING, phases=[Phase.generate])
DTYPES = ["float32", "float64"]


def sizes(batch):
    return np.unique(batch.groups, return_counts=True)[1].tolist()


def is_subnormal(batch):
    tiny = np.finfo(batch.rewards.dtype).smallest_normal
    return np.any((batch.rewards != 0) & (np.abs(batch.rewards) < tiny))


def has_binary_and_dense_tasks(batch):
    values = [set(batch.rewards[batch.tasks == t].tolist()) for t in np.unique(batch.tasks)]
    return {0.0, 1.0} in values and any(len(each) > 3 for each in values)


TRAPS = {
    "absent": lambda b: np.isnan(b.rewards).any(),
    "all absent but one": lambda b: np.isnan(b.rewards).sum() == len(b.rewards) - 1 > 0,
    "both infinities": lambda b: {-np.inf, np.inf} <= set(b.rewards.tolist()),
    "subnormal": is_subnormal,
    "largest float": lambda b: np.any(b.rewards == np.finfo(b.rewards.dtype).max),
    "constant group": lambda b: 4 in sizes(b) and len(set(b.rewards.tolist())) == 1,
    "single response among others": lambda b: 1 in sizes(b) and max(sizes(b)) > 4,
    "large group": lambda b: max(sizes(b)) > 26,
    "many tasks": lambda b: len(set(b.tasks)) == 3,
    "heterogeneous tasks": has_binary_and_dense_tasks,
    "rollouts of a group apart": lambda b: (
        b.groups.tolist()[:3:2] == [b.groups[0]] * 2 and b.groups[1] != b.groups[0]
    ),
    "negative label": lambda b: b.groups.min() < 0,
    "large label": lambda b: b.tasks.max() > 10**6,
    "labels that fall": lambda b: len(set(b.groups)) > 1 and b.groups[0] > b.groups[-1],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trap", TRAPS)
def test_every_difficult_case_is_drawn(trap, dtype):
    batch = find(reward_batches(dtype=dtype), TRAPS[trap], settings=AT_ALL)
    assert batch.rewards.dtype == dtype


def test_a_search_shrinks_to_a_small_batch():
    batch = find(reward_batches(), lambda b: len(b.rewards) > 1, settings=FINDING)
    assert [array.tolist() for array in batch] == [[0.0, 0.0], [0, 0], [0, 0]]
    batch = find(reward_batches(), lambda b: np.nanstd(b.rewards) > 0, settings=FINDING)
    assert sorted(batch.rewards.tolist()) == [0.0, 1.0]


@given(reward_batches())
def test_drawn_batches_have_labels_of_whole_groups(batch):
    assert isinstance(batch, RewardBatch)
    assert batch.rewards.shape == batch.groups.shape == batch.tasks.shape
    assert batch.groups.dtype == batch.tasks.dtype == np.int64
    assert len(set(zip(batch.groups, batch.tasks, strict=True))) == len(set(batch.groups))
    assert np.abs(batch.groups).max() <= 2**31
    assert max(sizes(batch)) <= 32
    assert len(sizes(batch)) <= 6


@given(
    reward_batches(
        kinds=ORDINARY,
        max_tasks=2,
        max_groups=3,
        max_group_size=5,
        allow_nan=False,
        any_labels=False,
    )
)
def test_options_restrict_the_drawn_batches(batch):
    assert np.isfinite(batch.rewards).all()
    assert max(sizes(batch)) <= 5
    assert sorted(set(batch.groups)) == list(range(len(set(batch.groups))))
    assert len(set(batch.groups)) <= 3
    assert set(batch.tasks) <= {0, 1}


@given(reward_batches(components=3, dtype="float32"))
def test_drawn_components_are_columns(batch):
    assert batch.rewards.shape == (len(batch.groups), 3)
    assert batch.rewards.dtype == np.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rewards_of_one_group_are_of_their_kind(kind, dtype):
    @given(rewards_of(kind, max_size=5, dtype=dtype))
    def holds(rewards):
        assert 1 <= len(rewards) <= 5
        assert rewards.dtype == dtype
        assert not np.isnan(rewards).any()
        if kind in ORDINARY:
            assert np.isfinite(rewards).all()
        if kind in ("constant", "binary", "outlier"):
            assert len(set(rewards.tolist())) <= 2 - (kind == "constant")

    holds()


@given(reward_batches().flatmap(lambda batch: st.tuples(st.just(batch), increasing_maps(batch))))
def test_maps_keep_the_order_of_every_group(drawn):
    batch, mapped = drawn
    assert mapped.dtype == batch.rewards.dtype
    assert np.array_equal(np.isnan(mapped), np.isnan(batch.rewards))
    for group in np.unique(batch.groups):
        before, after = batch.rewards[batch.groups == group], mapped[batch.groups == group]
        assert np.array_equal(before[:, None] < before, after[:, None] < after)


@given(integer_labels(4))
def test_drawn_labels_are_different(labels):
    assert len(set(labels)) == 4


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of 'binary', .* got 'dens'"):
        find(reward_batches(kinds=["dens"]), lambda batch: True, settings=FINDING)


def test_the_core_does_not_load_it():
    code = "import g2rpo, sys; assert not {'hypothesis', 'g2rpo.testing'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_hypothesis_the_error_names_the_command():
    code = "import sys; sys.modules['hypothesis'] = None; import g2rpo.testing"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "g2rpo.testing needs hypothesis" in result.stderr
    assert 'pip install "g2rpo[cli]"' in result.stderr
