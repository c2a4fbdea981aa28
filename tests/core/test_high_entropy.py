"""The share of tokens with the highest entropies, task by task."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g2rpo import high_entropy_mask

TASKS = np.asarray([0, 2, 0, 7, 2, 0, 9])


def slow_mask(entropies, mask, tasks, share):
    """Sort each task's tokens and select those not below the k-th largest."""
    found = np.zeros_like(mask)
    for task in set(tasks.tolist()):
        places = [(i, j) for i, j in zip(*mask.nonzero(), strict=True) if tasks[i] == task]
        ordered = sorted((entropies[place] for place in places), reverse=True)
        if ordered:
            limit = ordered[math.floor(share * (len(ordered) - 1) + 1e-3)]
            for place in places:
                found[place] = entropies[place] >= limit
    return found


def tokens(rng, rows=7, longest=9, ties=False):
    mask = rng.random((rows, longest)) < 0.7
    mask[3] = False
    entropies = np.abs(rng.standard_normal((rows, longest))) * (1 + np.arange(rows)[:, None])
    if ties:
        entropies = np.round(entropies)
    return np.where(mask, entropies, rng.choice([np.nan, np.inf, 99.0], mask.shape)), mask


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_mask_is_that_of_a_loop_over_tasks(library, rng, share, ties):
    entropies, mask = tokens(rng, ties=ties)
    entropies = entropies.astype(library.dtype)
    arrays = [library.array(x) for x in (entropies, mask, TASKS)]
    found = library.numpy(high_entropy_mask(*arrays, share=share))
    assert np.array_equal(found, slow_mask(entropies, mask, TASKS, share))
    assert found.dtype == bool


@pytest.mark.parametrize("share", [0.0, 0.125, 0.2, 0.25, 0.5, 0.75, 0.875])
def test_one_task_is_the_quantile_of_trl(rng, share):
    import torch

    for size in (1, 2, 5, 11, 101, 640):
        entropies = torch.tensor(rng.random((1, size)), dtype=torch.float32)
        limit = torch.quantile(entropies[0], 1 - share)
        found = high_entropy_mask(entropies, torch.ones_like(entropies), share=share)
        assert torch.equal(found, entropies >= limit)


def test_a_share_counts_whole_tokens(library):
    """Eleven tokens: .3 of the ten gaps are three more than the first."""
    entropies = library.array(np.arange(11.0)[:, None])
    mask = library.array(np.ones((11, 1), dtype=bool))
    for share, kept in ((0.0, 1), (0.1, 2), (0.3, 4), (0.7, 8), (0.99, 10)):
        assert library.numpy(high_entropy_mask(entropies, mask, share=share)).sum() == kept


def test_a_task_of_low_entropy_keeps_its_share_of_tokens(rng):
    unsure, sure = rng.random((4, 10)) + 1.0, 1e-3 * rng.random((4, 10))
    entropies, tasks = np.concatenate([unsure, sure]), np.repeat([0, 1], 4)
    mask = np.ones(entropies.shape, dtype=bool)
    by_task = high_entropy_mask(entropies, mask, tasks, share=0.2)
    assert by_task[:4].sum() == by_task[4:].sum() == 8
    assert not high_entropy_mask(entropies, mask, share=0.2)[4:].any()


def test_equal_entropies_all_remain(library):
    entropies = library.array([[0.0, 0.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 0.5, 0.1]])
    mask, tasks = library.array(np.ones((2, 5), dtype=bool)), library.array(np.asarray([0, 1]))
    found = library.numpy(high_entropy_mask(entropies, mask, tasks, share=0.25))
    assert found.tolist() == [[True] * 5, [True, True, True, False, False]]


@given(st.data())
def test_neither_order_nor_other_tasks_nor_masked_tokens_matter(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    share = data.draw(st.floats(0, 1))
    entropies, mask = tokens(rng, ties=data.draw(st.booleans()))
    found = high_entropy_mask(entropies, mask, TASKS, share=share)
    order = rng.permutation(len(TASKS))
    moved = high_entropy_mask(entropies[order], mask[order], TASKS[order], share=share)
    assert np.array_equal(moved, found[order])
    own = TASKS == 2
    alone = high_entropy_mask(entropies[own], mask[own], TASKS[own], share=share)
    assert np.array_equal(alone, found[own])
    assert not (found & ~mask).any()
    # A larger share keeps more, and an increasing map changes nothing.
    more = high_entropy_mask(entropies, mask, TASKS, share=share + (1 - share) / 2)
    assert not (found & ~more).any()
    scaled = np.where(mask, 4.0 * entropies, np.nan)
    assert np.array_equal(high_entropy_mask(scaled, mask, TASKS, share=share), found)


def test_nan_never_remains_and_empty_batches_are_legal(library):
    entropies = library.array([[np.nan, 0.5], [np.nan, np.nan]])
    mask, tasks = library.array(np.ones((2, 2), dtype=bool)), library.array(np.asarray([0, 1]))
    found = library.numpy(high_entropy_mask(entropies, mask, tasks, share=0.9))
    assert found.tolist() == [[False, True], [False, False]]
    for shape in ((0, 4), (3, 0)):
        nothing = library.array(np.zeros(shape))
        assert high_entropy_mask(nothing, nothing > 0, share=0.5).shape == shape


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_of_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got"):
        high_entropy_mask(np.ones((2, 3)), np.ones((2, 3)), share=share)
