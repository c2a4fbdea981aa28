"""Odd rewards train; wrong input is refused with a text that says what to do."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tunix.rl.grpo.grpo_learner import GRPOConfig

import g2rpo
from g2rpo_tunix import AgenticG2RPOLearner, G2RPOConfig, G2RPOLearner

from .conftest import GROUP, PROMPTS, TASKS, batches, letters, make_cluster, make_config


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_rewards_that_are_no_numbers_train(train, odd):
    def rewards(prompts, completions, **_):
        values = letters(prompts, completions)
        values[0], values[GROUP : 2 * GROUP] = odd, [odd] * GROUP
        return values

    record = train(rewards=rewards, steps=2)
    assert np.isfinite(record.losses).all()
    for seen, (_, columns, example) in zip(record.rewards, record.examples, strict=True):
        assert not np.isfinite(seen[0, 0])
        advantages = np.asarray(example.advantages)
        tasks = [TASKS.index(task) for task in columns["task"]]
        groups = np.arange(PROMPTS).repeat(GROUP)
        wanted = g2rpo.gaussian_advantages(seen[:, 0], groups, np.asarray(tasks))
        np.testing.assert_allclose(advantages, wanted, atol=1e-6)
        assert (advantages[GROUP : 2 * GROUP] == 0).all()
        assert (advantages[0] == 0) == np.isnan(odd)


def refused(error, match, config=None, data=None, rewards=letters, **cluster):
    def build_and_train():
        learner = G2RPOLearner(make_cluster(**cluster), config or make_config(), rewards)
        learner.train(data or batches(1))

    with pytest.raises(error, match=match):
        build_and_train()


def test_datasets():
    def changed(**columns):
        batch = batches(1)[0] | columns
        return [{name: column for name, column in batch.items() if column is not None}]

    refused(ValueError, "must have the column 'task'", data=changed(task=None))
    refused(ValueError, "unknown task 'cuont'; did you mean 'count'", data=changed(
        task=np.asarray(["cuont", "count", "count", "count"])
    ))  # fmt: skip
    refused(ValueError, r"must be in 0 \.\. 2", data=changed(task=np.asarray([0, 1, 2, 3])))
    refused(TypeError, "names or numbers", data=changed(task=np.zeros(PROMPTS)))
    refused(TypeError, "'task' must be a NumPy array, got list", data=changed(task=["count"] * 4))
    refused(ValueError, r"'task' must have shape \(4,\)", data=changed(task=np.zeros(3, int)))
    refused(TypeError, "dict of columns with 'prompts'", data=[np.zeros(3)])


def test_clusters():
    packed = make_cluster(max_seq_token_per_tpu=64)
    with pytest.raises(ValueError, match="max_seq_token_per_tpu must be None"):
        G2RPOLearner(packed, make_config(), letters)
    explicit = jax.make_mesh((1, 1), ("fsdp", "tp"))
    if any(kind != jax.sharding.AxisType.Auto for kind in explicit.axis_types):
        cluster = make_cluster()
        cluster.cluster_config.role_to_mesh.update(
            dict.fromkeys(cluster.cluster_config.role_to_mesh, explicit)
        )
        with pytest.raises(ValueError, match=r"axes of type AxisType\.Auto"):
            G2RPOLearner(cluster, make_config(), letters)


def test_learners_take_their_own_configuration():
    with pytest.raises(TypeError, match="must be a G2RPOConfig, got GRPOConfig"):
        G2RPOLearner(make_cluster(), GRPOConfig(), letters)
    with pytest.raises(TypeError, match="must be an AgenticG2RPOConfig, got G2RPOConfig"):
        AgenticG2RPOLearner(make_cluster(), make_config())
    with pytest.raises(ValueError, match="reward_manager must be 'g2rpo'"):
        G2RPOLearner(make_cluster(), make_config(reward_manager="sequence-level"), letters)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"estimator": "gausian"}, ValueError, "unknown estimator 'gausian'; did you mean"),
        ({"estimator_options": {"tise": 1}}, TypeError, "estimator_options of 'gaussian'"),
        (
            {"estimator_options": {"component_weights": [1]}},
            ValueError,
            "set reward_weights",
        ),
        ({"tasks": "maths"}, TypeError, "list of names, got the string 'maths'"),
        ({"tasks": ("a", "a")}, ValueError, "each task once"),
        ({"entropy_bounds": (0.6, 0.2)}, ValueError, "^entropy_bounds: .*0 <= low <= high"),
        ({"entropy_bounds": (0.6,)}, ValueError, r"entropy_bounds must be \(low, high\)"),
        ({"task_entropy_weights": {"all": -1}}, ValueError, "task_entropy_weights of 'all' must"),
        ({"entropy_control": "on"}, ValueError, "entropy_control must be one of 'fixed', 'adap"),
        ({"length_calibrate": True}, ValueError, "length_calibrate needs length_only_right"),
        ({"length_calibration": {"dcay": 1}}, ValueError, "did you mean 'decay'"),
        ({"task_weights": {"ocr": 1}}, ValueError, "task_weights: unknown task 'ocr'"),
        ({"task_entropy_bounds": {"ocr": (0, 1)}}, ValueError, "task_entropy_bounds: unknown task"),
        ({"length_mode": "term"}, ValueError, "needs length_targets"),
        (
            {"length_mode": "terms"},
            ValueError,
            "length_mode must be one of 'term', 'reward', 'off'",
        ),
        (
            {"length_mode": "term", "length_targets": {"all": (3, 2, 1, 0)}},
            ValueError,
            "length_targets of 'all'",
        ),
        ({"loss_agg_mode": "token-mean"}, ValueError, "loss_agg_mode has no effect"),
        ({"kl_loss_mode": "low_var_kl"}, ValueError, "set kl_kind instead"),
        ({"advantage_estimator": "grpo"}, ValueError, "set estimator instead"),
        ({"num_generations": 1}, ValueError, "num_generations"),
    ],
)
def test_configurations(options, error, match):
    with pytest.raises(error, match=match):
        G2RPOConfig(**options)


def test_reward_functions_and_their_weights():
    refused(ValueError, "must have 1 weights, one for each of letters, got 2",
            config=make_config(reward_weights=(1, 2)))  # fmt: skip
    refused(ValueError, "length_only_right: unknown reward function 'accuracy'", config=make_config(
        length_mode="term", length_targets={"count": (0, 1, 2, 3)}, length_only_right="accuracy"
    ))  # fmt: skip
