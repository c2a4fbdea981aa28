"""A learner trains end to end, and what its loss sees is what the core says."""

from __future__ import annotations

import jax
import numpy as np
import optax
from flax import nnx

import g2rpo

from .conftest import (
    GROUP,
    PROMPTS,
    TASKS,
    Letters,
    batches,
    history,
    letters,
    make_config,
    short,
)


def expected(rewards, labels, **options):
    groups = np.arange(len(rewards) // GROUP).repeat(GROUP)
    tasks = np.asarray([TASKS.index(label) for label in labels])
    return g2rpo.gaussian_advantages(rewards, groups, tasks, **options)


def test_the_loss_sees_the_advantages_of_the_core(train):
    record = train()
    assert len(record.trained) == 3
    for rewards, (_, columns, example), trained in zip(
        record.rewards, record.examples, record.trained, strict=True
    ):
        advantages = expected(rewards[:, 0], columns["task"])
        assert np.abs(advantages).max() > 0
        np.testing.assert_allclose(example.advantages, advantages, atol=1e-6)
        np.testing.assert_allclose(trained.advantages, advantages, atol=1e-6)
        completions = [
            "".join("abcdefghijklmnop"[i - 3] for i in row if i >= 3)
            for row in np.asarray(example.completion_ids)
        ]
        np.testing.assert_allclose(rewards[:, 0], letters(columns["prompts"], completions))
    assert np.isfinite(record.losses).all()


def test_metrics_of_every_task_are_logged(train):
    record = train(steps=4, rewards=[letters, short])
    for step, (rewards, (_, columns, example)) in enumerate(
        zip(record.rewards, record.examples, strict=True)
    ):
        total = rewards.sum(axis=1)
        np.testing.assert_allclose(history(record, "global", "reward")[step], total.mean())
        for number, task in enumerate(TASKS):
            entropy = history(record, "actor", f"entropy/{task}")[step]
            rows = columns["task"] == task
            assert np.isnan(entropy) == (not rows.any())
            assert rows.any() == (np.asarray(example.tasks) == number).any()
    for task in TASKS:
        rows = [columns["task"] == task for _, columns, _ in record.examples]
        present = [
            (rewards.sum(axis=1)[r].mean(), np.asarray(example.completion_mask).sum(axis=1)[r])
            for r, rewards, (_, _, example) in zip(
                rows, record.rewards, record.examples, strict=True
            )
            if r.any()
        ]
        assert 0 < len(present) < 4  # a task that a batch lacks leaves a gap, not a 0
        np.testing.assert_allclose(history(record, "reward", task), [p[0] for p in present])
        np.testing.assert_allclose(
            history(record, "completions", f"mean_length/{task}"), [p[1].mean() for p in present]
        )
    assert np.isfinite(history(record, "actor", "loss/entropy")).all()
    entropies = history(record, "actor", "entropy")
    assert (entropies > 0).all()
    assert (entropies < np.log(19)).all()


def test_a_batch_that_lacks_tasks_trains(train):
    record = train(data=batches(2, tasks=TASKS[:1]), steps=2)
    assert np.isfinite(record.losses).all()
    for name in ("entropy", "kl", "ratio/mean", "ratio/max", "clip_ratio/region_mean"):
        assert np.isnan(history(record, "actor", f"{name}/{TASKS[1]}")).all()
        np.testing.assert_allclose(
            history(record, "actor", f"{name}/{TASKS[0]}"),
            history(record, "actor", name),
            rtol=1e-5,
        )


def parameters(record):
    return jax.tree.leaves(nnx.state(record.learner.rl_cluster.actor_trainer.model))


SHAPED = {
    "entropy_weight": 0.5,
    "task_entropy_bounds": {"count": (0.0, 0.3), "first": (3.0, 4.0)},
    "length_mode": "term",
    "length_weight": 0.7,
    "length_targets": {"count": (0, 1, 2, 4), "tail": (2, 4, 6, 8)},
}


def test_micro_batches_change_nothing(train):
    def run(**training):
        return train(
            make_config(**SHAPED),
            steps=2,
            actor_optimizer=optax.sgd(0.5),
            rollout_micro_batch_size=PROMPTS,
            **training,
        )

    whole, parts = run(), run(train_micro_batch_size=1, compute_logps_micro_batch_size=2)
    assert (len(whole.trained), len(parts.trained)) == (2, 2 * PROMPTS)
    for one, other in zip(parameters(whole), parameters(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    names = ["loss/policy", "loss/length", "loss/entropy", "entropy", "loss", "ratio/max"]
    for task in TASKS:
        names += [f"{name}/{task}" for name in ("entropy", "ratio/mean", "ratio/max", "kl")]
    for name in names:
        np.testing.assert_allclose(
            history(whole, "actor", name), history(parts, "actor", name), atol=2e-5, err_msg=name
        )


def test_sampling_in_parts_keeps_the_statistics_of_the_whole(train):
    record = train(steps=2, train_micro_batch_size=2, rollout_micro_batch_size=1)
    for rewards, (_, columns, example) in zip(record.rewards, record.examples, strict=True):
        assert len(rewards) == PROMPTS * GROUP
        np.testing.assert_allclose(
            example.advantages, expected(rewards[:, 0], columns["task"]), atol=1e-6
        )


def test_length_is_a_term_or_a_part_of_the_reward(train):
    options = {**SHAPED, "length_only_right": "short"}
    term = train(make_config(**options), steps=1, rewards=[letters, short])
    ((_, columns, example),) = term.examples
    codes = np.asarray([TASKS.index(label) for label in columns["task"]])
    groups = np.arange(PROMPTS).repeat(GROUP)
    lengths = np.asarray(example.completion_mask).sum(axis=1)
    targets = np.asarray([[0, 1, 2, 4], [0, 0, 0, 0], [2, 4, 6, 8]], dtype=float)
    right = (term.rewards[0][:, 1] > 0) & (codes != 1)
    fit = g2rpo.length_reward(lengths.astype(float), targets[codes], right=right)
    np.testing.assert_allclose(
        example.length_advantages, g2rpo.gaussian_advantages(fit, groups, codes), atol=1e-6
    )
    part = train(
        make_config(**options | {"length_mode": "reward"}), steps=1, rewards=[letters, short]
    )
    rewards = np.column_stack([term.rewards[0], fit])
    np.testing.assert_allclose(part.rewards[0], term.rewards[0])
    np.testing.assert_allclose(part.length_rewards[0], fit)
    assert part.examples[0][2].length_advantages is None
    np.testing.assert_allclose(
        part.examples[0][2].advantages,
        g2rpo.gaussian_advantages(rewards, groups, codes, component_weights=[1, 1, 0.7]),
        atol=1e-6,
    )


def test_an_estimator_that_takes_lengths_gets_those_of_the_rollouts(train):
    record = train(make_config(estimator="opo", length_mode="off"), steps=1)
    ((_, _, example),) = record.examples
    lengths, rewards = np.asarray(example.completion_mask).sum(axis=1), record.rewards[0][:, 0]
    wanted = g2rpo.opo_advantages(rewards, np.arange(len(rewards)) // GROUP, lengths=lengths)
    assert len(set(lengths.tolist())) > 1
    np.testing.assert_allclose(example.advantages, wanted, atol=1e-6)


def test_responses_end_in_their_end_token(train):
    record = train(steps=1)
    ((_, _, example),) = record.examples
    tokens, mask = np.asarray(example.completion_ids), np.asarray(example.completion_mask)
    ended = (tokens == Letters().eos_id()).any(axis=1)
    assert 0 < ended.sum() < len(ended)
    for row in np.flatnonzero(ended):
        (place,) = np.flatnonzero(tokens[row] == Letters().eos_id())
        assert mask[row, place]
        assert (tokens[row, place + 1 :] == 0).all()
    clipped = history(record, "completions", "clipped_ratio")
    np.testing.assert_allclose(clipped, np.mean(mask[:, -1] & ~ended))


def test_the_reference_policy_holds_back(train):
    record = train(make_config(beta=0.1), steps=3, reference=True)
    kl = history(record, "actor", "kl")
    assert kl[0] < 1e-6 < kl[2]
    np.testing.assert_allclose(0.1 * kl, history(record, "actor", "loss/kl"), rtol=1e-5)


def test_several_iterations_start_from_the_policy_that_was_sampled(train):
    config = make_config(num_iterations=2)
    record = train(config, batches(2), steps=4, temperature=1.7)
    ratios = history(record, "actor", "ratio/mean")
    np.testing.assert_allclose(ratios[[0, 2]], 1.0, atol=1e-5)
    assert (np.abs(ratios[[1, 3]] - 1) > 1e-5).all()


def test_a_length_in_the_reward_leaves_absent_rewards_absent(train):
    def some(prompts, completions, **_):
        values = letters(prompts, completions)
        values[0] = np.nan
        return values

    targets = dict.fromkeys(TASKS, (0, 0, 2, 8))
    record = train(make_config(length_mode="reward", length_targets=targets), steps=1, rewards=some)
    ((_, columns, example),) = record.examples
    fit, rewards = record.length_rewards[0], record.rewards[0][:, 0]
    assert not np.isnan(fit[0])
    assert example.advantages[0] == 0
    fit = np.where(np.isnan(rewards), np.nan, fit)
    wanted = expected(np.column_stack([rewards, fit]), columns["task"], component_weights=[1, 0.1])
    np.testing.assert_allclose(example.advantages, wanted, atol=1e-6)


def test_task_weights_multiply_the_advantages(train):
    record = train(make_config(task_weights={"first": 0.25, "tail": 0.0}), steps=1)
    ((_, columns, example),) = record.examples
    factors = np.asarray([{"first": 0.25, "tail": 0.0}.get(task, 1.0) for task in columns["task"]])
    plain = expected(record.rewards[0][:, 0], columns["task"])
    np.testing.assert_allclose(example.advantages, plain * factors, atol=1e-6)
    assert history(record, "task_weight", "first").tolist() == [0.25]


def test_adaptive_entropy_weights_follow_the_tasks_and_are_those_of_the_loss(train):
    config = make_config(
        entropy_control="adaptive", entropy_control_rate=0.5, entropy_bounds=(0.0, 0.5)
    )
    record = train(config, steps=3)
    weights = np.full(len(TASKS), 0.02)
    for step, (_, columns, example) in enumerate(record.examples):
        entropies = [history(record, "actor", f"entropy/{task}")[step] for task in TASKS]
        present = np.isin(TASKS, columns["task"])
        distance = np.where(present, np.asarray(entropies) - 0.5, 0.0)
        weights = np.clip(weights + 0.5 * distance, 0, 1)
        np.testing.assert_allclose(example.entropy_weights[0], weights, rtol=1e-4)
        term = history(record, "actor", "loss/entropy")[step]
        np.testing.assert_allclose(term, (weights * distance).sum(), rtol=1e-4)
        for number, task in enumerate(TASKS):
            logged = history(record, "entropy_weight", task)[step]
            np.testing.assert_allclose(logged, weights[number], rtol=1e-4)
    assert (weights > 0.5).all()
