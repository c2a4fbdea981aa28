"""Task labels outside of 0 .. num_tasks - 1 cannot raise under jit: they belong to no task.

Whatever they are, every other task gets what it gets without them, to the last bit.
"""

from __future__ import annotations

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import g2rpo
from g2rpo import (
    ESTIMATORS,
    EMAState,
    batch_totals,
    calibrate_lengths,
    ema_grpo_advantages,
    g2rpo_loss,
    high_entropy_mask,
    length_quantiles,
    length_reward,
    policy_loss,
    task_means,
)
from g2rpo.advantages import takes_lengths

TASKS = 3
WRONG = [-1, TASKS, TASKS + 1, -(2**31), 2**31 - 1]
LOW, HIGH = jnp.asarray([0.2, 2.0, 0.2]), jnp.asarray([0.6, 3.0, 0.4])


@pytest.fixture
def labels():
    """Tasks of 24 rollouts, those of some outside, and which are not."""
    tasks = np.arange(24) % TASKS
    places = [4, 9, 10, 17, 23]
    tasks[places] = WRONG
    return jnp.asarray(tasks), np.isin(np.arange(24), places, invert=True)


@pytest.fixture
def tokens(rng):
    entropies = jnp.asarray(rng.random((24, 5)), jnp.float32)
    return entropies, jnp.asarray(rng.random((24, 5)) < 0.7)


def equal(got, expected):
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_unknown_labels_are_in_no_task_mean_and_no_total(labels, tokens):
    (tasks, known), (entropies, mask) = labels, tokens

    @jax.jit
    def both(entropies, mask, tasks):
        totals = batch_totals(mask, entropies=entropies, tasks=tasks, num_tasks=TASKS)
        return task_means(entropies, mask, tasks, TASKS), totals[2:]

    equal(
        both(entropies, mask, tasks),
        both(entropies, mask & known[:, None], jnp.where(known, tasks, 0)),
    )


def test_every_function_with_tasks_is_tested_here():
    functions = {name: getattr(g2rpo, name) for name in g2rpo.__all__}
    taking = {
        name
        for name, function in functions.items()
        if inspect.isfunction(function) and "tasks" in inspect.signature(function).parameters
    }
    assert taking == {
        "batch_totals",
        "calibrate_lengths",
        "ema_grpo_advantages",
        "g2rpo_loss",
        "gaussian_advantages",  # among the estimators
        "high_entropy_mask",
        "length_quantiles",
        "policy_loss",
        "rollout_metrics",  # on the host, where it refuses them: tests/core/test_rollout_metrics.py
        "task_means",
        "weigh_tasks",  # among the estimators
    }


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_for_an_estimator_every_integer_is_a_task(name, labels, rng):
    tasks, known = labels
    rewards = jnp.asarray(rng.random(24), jnp.float32)
    groups = jnp.where(known, jnp.arange(24) // 6, 10 + jnp.arange(24) // 12)
    lengths = {"lengths": jnp.arange(1, 25)} if takes_lengths(ESTIMATORS[name]) else {}
    estimate = jax.jit(partial(ESTIMATORS[name], **lengths))
    advantages = estimate(rewards, groups, tasks)
    assert advantages[known].any()
    assert np.isfinite(advantages).all()
    numbers = jnp.where(known, tasks, 0)
    for number, label in enumerate(WRONG):
        numbers = jnp.where(tasks == label, TASKS + number, numbers)
    equal(advantages, estimate(rewards, groups, numbers))
    # Other tasks do not know of them. What is standardised over the batch has no tasks.
    absent = estimate(jnp.where(known, rewards, jnp.nan), groups, jnp.where(known, tasks, 0))
    if name not in ("grpo-batch", "gdpo", "reinforce++", "reinforce++-baseline"):
        equal(advantages[known], absent[known])


def test_for_high_entropy_masks_every_integer_is_a_task(labels, tokens):
    (tasks, known), (entropies, mask) = labels, tokens
    chosen = jax.jit(partial(high_entropy_mask, share=0.4))
    numbers = jnp.where(known, tasks, 0)
    for number, label in enumerate(WRONG):
        numbers = jnp.where(tasks == label, TASKS + number, numbers)
    kept = chosen(entropies, mask, tasks)
    equal(kept, chosen(entropies, mask, numbers))
    without = chosen(entropies, mask & known[:, None], jnp.where(known, tasks, 0))
    equal(kept[known], without[known])


def test_unknown_labels_are_in_no_metric_by_task(labels, tokens, rng):
    (tasks, known), (entropies, mask) = labels, tokens
    logprobs = jnp.asarray(rng.standard_normal((24, 5)), jnp.float32)
    advantages = jnp.asarray(rng.standard_normal(24), jnp.float32)

    @jax.jit
    def metrics(mask, tasks):
        terms, found = g2rpo_loss(
            logprobs,
            0.9 * logprobs,
            advantages,
            mask,
            entropies=entropies,
            tasks=tasks,
            num_tasks=TASKS,
            entropy_low=LOW,
            entropy_high=HIGH,
        )
        _, of_ratios = policy_loss(
            logprobs, 0.9 * logprobs, advantages, mask, tasks=tasks, num_tasks=TASKS
        )
        by_task = {
            name: value for name, value in {**found, **of_ratios}.items() if "tasks/" in name
        }
        return terms.entropy, by_task

    found = metrics(mask, tasks)
    equal(found, metrics(mask & known[:, None], jnp.where(known, tasks, 0)))
    assert {"tasks/entropy", "tasks/ratio/max", "tasks/kl_old"} <= set(found[1])
    assert all(value.shape == (TASKS,) for value in found[1].values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_responses_without_a_task_may_have_any_values(value):
    values, mask = jnp.asarray([[1.0], [value]]), jnp.ones((2, 1), dtype=bool)
    means, present = jax.jit(task_means, static_argnums=3)(values, mask, jnp.asarray([0, 7]), 2)
    assert means.tolist() == [1.0, 0.0]
    assert present.tolist() == [True, False]


def test_unknown_labels_add_nothing_to_the_entropy_term(labels, tokens):
    (tasks, known), (entropies, mask) = labels, tokens
    zeros = jnp.zeros_like(entropies)

    @jax.jit
    @jax.value_and_grad
    def term(entropies, tasks):
        terms, _ = g2rpo_loss(
            zeros,
            zeros,
            zeros[:, 0],
            mask,
            entropies=entropies,
            tasks=tasks,
            entropy_low=LOW,
            entropy_high=HIGH,
        )
        return terms.entropy

    value, gradient = term(entropies, tasks)
    assert not gradient[~known].any()
    assert gradient[known].any()
    # A second batch in which rollouts outside of all tasks hold other entropies.
    equal(term(jnp.where(known[:, None], entropies, 9.0), tasks), (value, gradient))


def test_unknown_labels_have_ema_grpo_advantages_of_0(labels, rng):
    tasks, known = labels
    rewards = jnp.asarray(rng.random(24), jnp.float32)
    groups = jnp.where(known, jnp.arange(24) // 6, 10 + jnp.arange(24))
    step = jax.jit(lambda *a: ema_grpo_advantages(*a, EMAState.start(TASKS, rewards)))
    advantages, state = step(rewards, groups, tasks)
    assert not advantages[~known].any()
    absent = step(jnp.where(known, rewards, jnp.nan), groups, jnp.where(known, tasks, 0))
    equal((advantages[known], state), (absent[0][known], absent[1]))
    # Nor does what they hold matter, an infinity included.
    other = step(jnp.where(known, rewards, jnp.inf), groups, tasks)
    equal((advantages[known], state), (other[0][known], other[1]))


def test_unknown_labels_do_not_change_length_targets(labels, rng):
    tasks, known = labels
    lengths = jnp.asarray(rng.integers(1, 90, 24))
    right = jnp.asarray(rng.random(24) < 0.9)
    state = jnp.asarray([[0.0, 10.0, 50.0, jnp.inf]] * TASKS)

    @jax.jit
    def both(lengths, right, tasks):
        found = length_quantiles(lengths, right, tasks, TASKS)
        return found, calibrate_lengths(state, lengths, right, tasks, min_samples=2)

    expected = both(lengths, right & known, jnp.where(known, tasks, 0))
    equal(both(lengths, right, tasks), expected)
    assert expected[1][0, 1] != 10


def test_indexing_a_table_with_unknown_labels_is_not_checked(labels, rng):
    """JAX's indexing counts from the end and clamps, so callers must replace such labels."""
    tasks, known = labels
    lengths = jnp.asarray(rng.integers(1, 90, 24))
    table = jnp.asarray([[0.0, 10.0, 50.0, 100.0], [0, 0, 9, 20], [5, 6, 7, 8]])

    @jax.jit
    def rewards(lengths, tasks):
        targets = table[jnp.clip(tasks, 0, TASKS - 1)]
        return length_reward(lengths, targets, right=(tasks >= 0) & (tasks < TASKS))

    found = rewards(lengths, tasks)
    assert np.isnan(found[~known]).all()
    expected = length_reward(lengths[known], table[tasks[known]])
    np.testing.assert_allclose(found[known], expected, rtol=1e-6)
