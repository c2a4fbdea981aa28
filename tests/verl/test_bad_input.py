"""Anything that would go wrong later, or in silence, is a sentence that says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from g2rpo_verl import estimators
from g2rpo_verl.options import read_options
from g2rpo_verl.shaping import Shaping
from g2rpo_verl.trainers import check_config

TASKS = {"tasks": ["count", "tail"]}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"entropi": {}}, "Key 'entropi' not in 'Options'"),
        ({"entropy": {"lo": 1}}, "Key 'lo' not in 'Entropy'"),
        ({"entropy": {"low": "much"}}, "algorithm.g2rpo: Value 'much'"),
        (
            {"estimator": {"name": "gausian"}},
            "unknown estimator 'gausian'; did you mean 'gaussian'",
        ),
        (
            {"estimator": {"task_stage": "both"}},
            "algorithm.g2rpo.estimator of 'gaussian': task_stage",
        ),
        (
            {"estimator": {"name": "rloo", "options": {"k": 2}}},
            "algorithm.g2rpo.estimator.options of 'rloo': .*'k'",
        ),
        ({"estimator": {"options": {"ties": "barycentre"}}}, "gaussian's stand beside it"),
        (
            {"estimator": {"name": "grpo", "options": {"lengths": 1}}},
            "algorithm.g2rpo.estimator.options must not have lengths: they are those of the resp",
        ),
        ({"estimator": {"decoupled": True}}, "decoupled needs rewards.weights"),
        ({"estimator": {"name": "gdpo"}}, "gdpo needs rewards.weights"),
        (
            {"estimator": {"name": "rloo", "decoupled": True}, "rewards": {"weights": {"a": 1}}},
            "rloo adds components first",
        ),
        ({"estimator": {"name": "ema-grpo"}}, "algorithm.g2rpo.tasks must list all tasks"),
        ({"entropy": {"control": "adaptive"}}, "algorithm.g2rpo.tasks must list all tasks"),
        (
            {"entropy": {"control": "on"}},
            "algorithm.g2rpo.entropy.control must be one of 'fixed', 'adaptive', got 'on'",
        ),
        (
            {"entropy": {"low": 0.7}},
            "g2rpo.entropy.low, algorithm.g2rpo.entropy.high: .* low <= high",
        ),
        (
            {"entropy": {"weight": -1}},
            "algorithm.g2rpo.entropy.weight must be a number of 0 or more, got -1",
        ),
        ({"entropy": {"bounds": {"tail": [0, 1]}}}, "names tasks, so algorithm.g2rpo.tasks must"),
        ({**TASKS, "entropy": {"bounds": {"tial": [0, 1]}}}, "unknown task 'tial'; did you mean"),
        (
            {**TASKS, "entropy": {"bounds": {"tail": [1, 0]}}},
            "entropy.bounds of 'tail': .*low <= h",
        ),
        ({**TASKS, "entropy": {"bounds": {"tail": [1]}}}, "entropy.bounds of 'tail' must be .low"),
        (
            {**TASKS, "length": {"mode": "on"}},
            "length.mode must be one of 'term', 'reward', 'off', got 'on'",
        ),
        (
            {**TASKS, "length": {"targets": {"tail": [1, 2]}}},
            "length.targets of 'tail' must be .minimum",
        ),
        ({**TASKS, "length": {"targets": {"tail": [4, 3, 2, 1]}}}, "length.targets of 'tail': "),
        ({**TASKS, "length": {"targets": {"tail": "long"}}}, "reasoning or direct, got 'long'"),
        (
            {**TASKS, "task_weights": {"weights": {"tail": -1}}},
            "task_weights.weights of 'tail' must be a number of 0",
        ),
        ({"tasks": ["count", "count"]}, "algorithm.g2rpo.tasks must name each task once"),
        ({"length": {"calibrate": True}}, "algorithm.g2rpo.tasks must list all tasks"),
        (
            {**TASKS, "length": {"calibration": {"dcay": 1}}},
            "length.calibration: unknown option 'dcay'; did you mean 'decay'",
        ),
        ({**TASKS, "length": {"calibration": {"decay": 2}}}, "length.calibration: decay must be"),
    ],
)
def test_options_are_refused_with_their_place(options, text):
    with pytest.raises(ValueError, match=text):
        read_options({"g2rpo": OmegaConf.create(options)})


def test_an_estimator_may_be_named_in_verls_own_setting():
    assert read_options({}, "g2rpo-rloo").estimator.name == "rloo"
    with pytest.raises(ValueError, match="unknown estimator 'rlo'; did you mean 'rloo'"):
        read_options({}, "g2rpo-rlo")


@pytest.mark.parametrize("label", [None, 3, 0.5, ["count"]])
def test_labels_of_other_types_are_refused(label):
    with pytest.raises(TypeError, match="column 'data_source' must hold the names of tasks"):
        estimators.tasks_of({"data_source": ["count", label]}, read_options({}), 2)


def test_a_label_that_is_none_of_the_tasks_is_refused():
    options = read_options({"g2rpo": TASKS})
    with pytest.raises(ValueError, match=r"unknown task 'tial'.*add it to algorithm.g2rpo.tasks"):
        estimators.tasks_of({"data_source": ["count", "tial"]}, options, 2)


def test_a_missing_column_is_refused_where_tasks_are_listed():
    options = read_options({"g2rpo": TASKS})
    with pytest.raises(ValueError, match="no column 'data_source' with each prompt's task, one of"):
        estimators.tasks_of({}, options, 2)


def test_a_component_that_the_reward_lacks_is_named():
    options = read_options({"g2rpo": {"rewards": {"weights": {"acuracy": 1.0}}}})
    with pytest.raises(ValueError, match=r"no component 'acuracy'.*there are: accuracy, score"):
        estimators.components_of({"score": [1], "accuracy": [1]}, options)


def call(index: Any, **options: Any) -> Any:
    size = 4
    return get_adv_estimator_fn("g2rpo")(
        token_level_rewards=torch.ones(size, 2),
        response_mask=torch.ones(size, 2),
        config={"g2rpo": options},
        index=index,
    )


def test_groups_of_one_are_refused():
    with pytest.raises(ValueError, match=r"a group needs two: set actor_rollout_ref.rollout.n"):
        call(np.arange(4))


def test_rows_without_their_prompt_are_refused():
    with pytest.raises(ValueError, match="no prompt of each row"):
        call(None)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"entropy": {"high": 0.4}}, "entropy"),
        ({**TASKS, "length": {"targets": {"tail": "direct"}}}, "length"),
        ({**TASKS, "estimator": {"name": "ema-grpo"}}, "estimator.name=ema-grpo"),
        ({"rewards": {"weights": {"accuracy": 1.0}}}, "rewards.weights"),
        ({**TASKS, "task_weights": {"weights": {"tail": 2.0}}}, "task_weights"),
    ],
)
def test_what_only_our_trainers_do_is_refused_in_verls(options, what):
    with pytest.raises(ValueError, match=f"{what} needs a trainer of g2rpo; set"):
        call(np.asarray([0, 0, 1, 1]), **options)


def test_state_of_other_tasks_is_refused():
    def shaping(tasks, control):
        options = {"tasks": tasks, "entropy": {"control": control}}
        return Shaping(read_options({"g2rpo": options}), 8)

    saved = shaping(["a", "b"], "fixed").state_dict()
    shaping(["b", "a"], "fixed").load_state_dict(saved)  # nothing is remembered by either
    with pytest.raises(ValueError, match=r"with entropy_weights, got \[\] with nothing; resume"):
        shaping(["b", "a"], "adaptive").load_state_dict(saved)
    saved = shaping(["a", "b"], "adaptive").state_dict()
    with pytest.raises(ValueError, match=r"of the tasks \['b', 'a'\] .* got \['a', 'b'\]"):
        shaping(["b", "a"], "adaptive").load_state_dict(saved)


@pytest.fixture
def config():
    with initialize_config_module("verl.trainer.config", version_base=None):
        settings = ["algorithm.adv_estimator=g2rpo", "actor_rollout_ref.rollout.name=vllm"]
        return compose("ppo_trainer", [*settings, "actor_rollout_ref.rollout.n=4"])


def change(config: Any, key: str, value: Any) -> Any:
    with open_dict(config):
        OmegaConf.update(config, key, value, force_add=True)
    return config


def test_two_settings_are_enough(config):
    assert check_config(config).estimator.name == "gaussian"
    assert config.actor_rollout_ref.actor.calculate_entropy


def test_without_the_entropy_term_no_entropy_is_computed(config):
    check_config(change(config, "algorithm.g2rpo.entropy.weight", 0))
    assert not config.actor_rollout_ref.actor.calculate_entropy


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("algorithm.adv_estimator", "grpo", "needs algorithm.adv_estimator=g2rpo"),
        ("actor_rollout_ref.rollout.n", 1, "actor_rollout_ref.rollout.n must be 2 or more"),
        ("distillation.enabled", True, "distillation has a loss of its own"),
        ("algorithm.rollout_correction.bypass_mode", True, "bypass_mode=False, or"),
    ],
)
def test_settings_of_verl_that_contradict_ours_are_refused(config, key, value, text):
    with pytest.raises(ValueError, match=text):
        check_config(change(config, key, value))


def test_kl_in_the_reward_does_not_go_with_components(config):
    change(config, "algorithm.g2rpo.rewards.weights", {"accuracy": 1.0})
    change(config, "algorithm.use_kl_in_reward", True)
    with pytest.raises(ValueError, match=r"use actor.use_kl_loss, or leave the weights out"):
        check_config(config)


def test_a_task_without_a_target_is_said(config, caplog):
    change(config, "algorithm.g2rpo", {**TASKS, "length": {"targets": {"tail": "direct"}}})
    check_config(config)
    assert "algorithm.g2rpo.length.targets has no 'count'" in caplog.text
