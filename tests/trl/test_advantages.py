"""The advantages that TRL trains on, and shows, are the core's over the whole batch."""

from __future__ import annotations

import numpy as np
import pytest

import g2rpo

from .tiny import GROUP, TASKS, logs, rows, table, trainer, vowels


def columns(shown):
    """Return rewards (N, 2), tasks and lengths of a table of completions."""
    rewards = shown[["vowels", "early"]].to_numpy(np.float32)
    return rewards, (shown["number"] % 3).to_numpy(), shown["tokens"].to_numpy()


@pytest.mark.parametrize(
    ("estimator", "options"),
    [
        ("gaussian", {}),
        ("gaussian", {"task_stage": None, "decoupled": True, "resolution": 0.5}),
        ("grpo", {}),
        ("gdpo", {}),
        ("opo", {}),
        ("pass@k", {"k": 2}),
    ],
)
def test_advantages_are_bit_equal_to_the_core(tmp_path, estimator, options):
    made = trainer(
        tmp_path, estimator=estimator, estimator_options=options, reward_weights=[1.0, 0.3]
    )
    made.train()
    for step in (1, 2):
        shown = table(tmp_path, step)
        rewards, tasks, lengths = columns(shown)
        given = {"lengths": lengths} if estimator == "opo" else {}
        expected = g2rpo.ESTIMATORS[estimator](
            rewards, GROUP, tasks, component_weights=[1.0, 0.3], **options, **given
        )
        assert len(shown) == 24
        assert np.abs(expected).max() > 0
        np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected)


def test_running_moments_go_from_batch_to_batch(tmp_path):
    trainer(tmp_path, estimator="ema-grpo", reward_funcs=vowels).train()
    state = g2rpo.EMAState.start(3, np.zeros(1, np.float32))
    for step in (1, 2):
        shown = table(tmp_path, step)
        expected, state = g2rpo.ema_grpo_advantages(
            shown["vowels"].to_numpy(np.float32), GROUP, (shown["number"] % 3).to_numpy(), state
        )
        np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected)


def test_statistics_are_those_of_all_micro_batches(tmp_path):
    made = trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=6)
    made.train()
    rewards, tasks, _ = columns(table(tmp_path, 1))
    expected = g2rpo.gaussian_advantages(rewards, GROUP, tasks, component_weights=[1.0, 1.0])
    np.testing.assert_array_equal(table(tmp_path, 1)["advantage"].to_numpy(np.float32), expected)


def test_weights_of_tasks_multiply_their_advantages(tmp_path):
    made = trainer(tmp_path, reward_funcs=vowels, task_weights={"first": 0.25, "tail": 0.0})
    made.train()
    shown = table(tmp_path, 1)
    tasks = (shown["number"] % 3).to_numpy()
    expected = g2rpo.gaussian_advantages(shown["vowels"].to_numpy(np.float32), GROUP, tasks)
    factors = np.asarray([1.0, 0.25, 0.0], np.float32)[tasks]
    np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected * factors)
    assert logs(made)[0]["task_weight/first"] == 0.25


def test_no_reward_is_no_reward(tmp_path):
    def some(completions, **_):
        return [None if text[:1] < "e" else float(len(text)) for text in completions]

    made = trainer(tmp_path, reward_funcs=[some, vowels])
    made.train()
    shown, entry = table(tmp_path, 1), logs(made)[0]
    assert shown["some"].isna().any()
    for number, task in enumerate(TASKS):
        values = shown["some"][shown["number"] % 3 == number]
        assert entry[f"rewards/some/mean/{task}"] == pytest.approx(values.mean(), rel=1e-6)
    rewards = shown[["some", "vowels"]].to_numpy(np.float32)
    tasks = (shown["number"] % 3).to_numpy()
    expected = g2rpo.gaussian_advantages(rewards, GROUP, tasks, component_weights=[1.0, 1.0])
    np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected)


def test_a_response_without_any_reward_is_not_pushed(tmp_path):
    def partial(completions, completion_ids, log_extra, number, **_):
        log_extra("number", list(number))
        return [
            None if len(ids) < 8 else float(t.count("a"))
            for ids, t in zip(completion_ids, completions, strict=True)
        ]

    made = trainer(
        tmp_path, reward_funcs=partial, length_mode="reward", length_targets={"count": "direct"}
    )
    made.train()
    shown = table(tmp_path, 1)
    absent = shown["partial"].isna()
    assert absent.any()
    assert (shown["advantage"][absent] == 0).all()


def test_share_of_groups_without_signal_is_that_of_the_rewards(tmp_path):
    def equal_in_odd(completions, number, **_):
        return [0.3 if i % 2 else float(len(t)) for i, t in zip(number, completions, strict=True)]

    made = trainer(
        tmp_path,
        reward_funcs=[vowels, equal_in_odd],
        reward_weights=[0.0, 1.0],
        estimator="dr-grpo",
    )
    made.train()
    for step, entry in enumerate(logs(made), start=1):
        shown = table(tmp_path, step)
        groups = shown["equal_in_odd"].to_numpy().reshape(-1, GROUP)
        no_signal = (groups == groups[:, :1]).all(axis=1)
        assert entry["frac_reward_zero_std"] == pytest.approx(no_signal.mean())
        tasks = (shown["number"] % 3).to_numpy()[::GROUP]
        for number, task in enumerate(TASKS):
            share = entry.get(f"frac_reward_zero_std/{task}")
            expected = no_signal[tasks == number]
            assert share == (pytest.approx(expected.mean()) if len(expected) else None)


def test_metrics_of_the_tasks_make_up_trls(tmp_path):
    made = trainer(tmp_path)
    made.train()
    entry, number = logs(made)[0], table(tmp_path, 1)["number"]
    shares = {task: float((number % 3 == k).mean()) for k, task in enumerate(TASKS)}
    names = ("reward", "completions/mean_length", "completions/clipped_ratio")
    for name in (*names, "rewards/vowels/mean"):
        parts = [shares[t] * entry[f"{name}/{t}"] for t in TASKS if shares[t]]
        assert entry[name] == pytest.approx(sum(parts), rel=1e-5)
    for name, choose in (("min_length", min), ("max_length", max)):
        parts = [entry[f"completions/{name}/{t}"] for t in TASKS if shares[t]]
        assert entry[f"completions/{name}"] == choose(parts)


def test_one_task_where_there_is_no_column(tmp_path):
    made = trainer(tmp_path, reward_funcs=vowels, train_dataset=rows().remove_columns("task_type"))
    made.train()
    shown = table(tmp_path, 1)
    expected = g2rpo.gaussian_advantages(shown["vowels"].to_numpy(np.float32), GROUP)
    np.testing.assert_array_equal(shown["advantage"].to_numpy(np.float32), expected)
    assert not [name for name in logs(made)[0] if name.startswith("reward/")]


def test_labels_may_be_integers_and_class_labels(tmp_path):
    numbered = rows(4).map(lambda row: {"task_type": row["number"] % 2})
    made = trainer(
        tmp_path, reward_funcs=vowels, train_dataset=numbered, per_device_train_batch_size=16
    )
    made.train()
    assert {"reward/0", "reward/1"} < logs(made)[0].keys()
    named = rows().class_encode_column("task_type")
    made = trainer(
        tmp_path, reward_funcs=vowels, train_dataset=named, length_targets={"tail": [0, 1, 2, 3]}
    )
    made.train()
    assert {f"reward/{task}" for task in TASKS} & logs(made)[0].keys()
