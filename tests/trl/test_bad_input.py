"""A sentence for what cannot be done: where, what it was, what it must be."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from trl import GRPOConfig, TrlParser

from g2rpo_trl import G2RPOConfig, G2RPOTrainer

from .tiny import TASKS, config, rows, save_model, tokenizer, trainer, vowels


def labelled(labels):
    return Dataset.from_list(
        [{"prompt": "abc", "number": 0, "task_type": label} for label in labels]
    )


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ([0.5, 1.5], TypeError, "string or an integer, got 0.5 of float"),
        ([["a"], ["b"]], TypeError, "of list"),
        ([True, False], TypeError, "of bool"),
        (["a", None], TypeError, "got None"),
    ],
)
def test_labels_are_strings_or_integers(tmp_path, labels, error, text):
    with pytest.raises(error, match=f"column 'task_type' must hold the task .*{text}"):
        trainer(tmp_path, train_dataset=labelled(labels))


@pytest.mark.parametrize(
    "option", ["entropy_weights", "entropy_bounds", "length_targets", "task_weights"]
)
def test_options_name_tasks_that_there_are(tmp_path, option):
    value = {"entropy_bounds": [0, 1], "length_targets": "direct"}.get(option, 1.0)
    with pytest.raises(ValueError, match=f"{option}: unknown task 'cuont'; did you mean 'count'"):
        trainer(tmp_path, **{option: {"cuont": value}})


def test_missing_column_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        made = trainer(
            tmp_path, reward_funcs=vowels, train_dataset=rows().remove_columns("task_type")
        )
        made.train()
    said = [r.message for r in caplog.records if "no column 'task_type'" in r.message]
    assert len(said) == 1
    assert "set task_column" in said[0]


def test_column_that_was_named_must_be_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"'tsk' .*one of its columns \(prompt, task_type, number\)"
    ):
        trainer(tmp_path, task_column="tsk")
    with pytest.raises(ValueError, match="must have the column 'task_type'"):
        trainer(tmp_path, tasks=["a"], train_dataset=rows().remove_columns("task_type"))
    with pytest.raises(ValueError, match="for training and for evaluation"):
        trainer(tmp_path, eval_dataset=rows(4).remove_columns("task_type"))


def test_task_without_a_target_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, length_targets={"tail": "direct"})
    said = [r.message for r in caplog.records if "No length is rewarded" in r.message]
    assert len(said) == 1
    assert "count, first" in said[0]


def test_tasks_of_an_iterable_data_set_are_named(tmp_path):
    stream = rows().to_iterable_dataset()
    with pytest.raises(ValueError, match="tasks must be given for an iterable data set"):
        trainer(tmp_path, train_dataset=stream)
    trainer(tmp_path, train_dataset=stream, tasks=list(TASKS)).train()
    made = trainer(tmp_path, train_dataset=stream, tasks=["count", "first", "tial"])
    with pytest.raises(
        ValueError, match=r"unknown task 'tail'; did you mean 'tial'.*add it to tasks"
    ):
        made.train()
    with pytest.raises(ValueError, match="unknown task 'tail'"):
        trainer(tmp_path, tasks=["count", "first"])


def test_groups_are_whole_and_of_one_task(tmp_path):
    class Shuffled(G2RPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return [*super()._get_train_sampler(dataset)][::-1][1:25]

    def made(**options):
        return Shuffled(
            str(save_model(tmp_path / "model")),
            vowels,
            config(tmp_path, **options),
            train_dataset=rows(),
            processing_class=tokenizer(),
        )

    with pytest.raises(ValueError, match=r"each 4 consecutive rollouts .* of several prompts"):
        made().train()
    uneven = trainer(tmp_path, eval_dataset=rows(3), per_device_eval_batch_size=9)
    with pytest.raises(ValueError, match="whole groups of 4, got 9 of all processes"):
        uneven.evaluate()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"scale_rewards": "batch"}, ValueError, "scale_rewards has no effect here .*grpo-batch"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, ValueError, "estimator='gdpo'"),
        ({"estimator": "gausian"}, ValueError, "did you mean 'gaussian'"),
        ({"estimator_options": {"tie": 1}}, TypeError, "estimator_options of 'gaussian': .*tie"),
        ({"estimator_options": {"task_stage": "x"}}, ValueError, "estimator_options of 'gaussian'"),
        ({"estimator_options": {"component_weights": [1]}}, ValueError, "set reward_weights"),
        (
            {"estimator_options": "k=2"},
            TypeError,
            "must be a dictionary, or one as JSON, got 'k=2'",
        ),
        ({"entropy_low": 2.0}, ValueError, "entropy_low, entropy_high: .*0 <= low <= high"),
        ({"entropy_bounds": {"a": [1, 0]}}, ValueError, "entropy_bounds of 'a': .*low <= high"),
        (
            {"entropy_weight": -1},
            ValueError,
            "entropy_weight must be a number of 0 or more, got -1",
        ),
        (
            {"task_weights": {"a": -1}},
            ValueError,
            "task_weights of 'a' must be a number of 0 or more",
        ),
        (
            {"entropy_control": "on"},
            ValueError,
            "entropy_control must be one of 'fixed', 'adaptive', got 'on'",
        ),
        (
            {"length_mode": "on"},
            ValueError,
            "length_mode must be one of 'term', 'reward', 'off', got 'on'",
        ),
        ({"length_targets": {"a": [3, 2, 1, 0]}}, ValueError, "length_targets of 'a': "),
        (
            {"length_targets": {"a": [1, 2]}},
            ValueError,
            "length_targets of 'a' must be .minimum, low",
        ),
        (
            {"length_targets": {"a": "short"}},
            ValueError,
            "length_targets of 'a' must be .*, reasoning or direct, got 'short'",
        ),
        ({"length_calibrate": True}, ValueError, "length_calibrate needs length_only_right"),
        ({"length_calibration": {"dcay": 1}}, ValueError, "did you mean 'decay'"),
        (
            {"entropy_bounds": {"a": 1.0}},
            TypeError,
            "entropy_bounds of 'a' must be .low, high.*got 1.0",
        ),
        ({"entropy_weights": {"a": None}}, ValueError, "of 'a' must be a number of 0 or more"),
        (
            {"length_targets": {"a": 5}},
            TypeError,
            "length_targets of 'a' must be .minimum, .*got 5",
        ),
        ({"length_calibration": {"decay": 2}}, ValueError, "length_calibration: decay"),
        ({"length_calibration": {"warmup_steps": -1}}, ValueError, "length_calibration: warmup"),
        ({"tasks": ["a", "a"]}, ValueError, "tasks must name each task once, got a, a"),
        (
            {"entropy_control_rate": -1},
            ValueError,
            "entropy_control_rate must be a number of 0 or more",
        ),
        ({"tasks": "ocr"}, TypeError, "tasks must be a list of names, got the string 'ocr'"),
    ],
)
def test_options_out_of_range(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        config(tmp_path, **options)


def test_right_responses_are_told_by_a_reward_function(tmp_path):
    with pytest.raises(ValueError, match="length_only_right: unknown reward function 'vowls'"):
        trainer(tmp_path, length_only_right="vowls", length_targets={"count": "direct"})


def test_reward_functions_are_not_called_as_the_length_reward_is(tmp_path):
    def length(completions, **_):
        return [0.0] * len(completions)

    trainer(tmp_path, reward_funcs=length)
    with pytest.raises(ValueError, match="must not be called 'length'"):
        trainer(tmp_path, reward_funcs=length, length_targets={"count": "direct"})


def test_configuration_is_ours(tmp_path):
    with pytest.raises(TypeError, match="args must be a G2RPOConfig, got GRPOConfig"):
        G2RPOTrainer("nowhere", vowels, GRPOConfig(str(tmp_path), bf16=False))


def test_release_of_trl_is_checked():
    code = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "1.17.2" if name == "trl" else real(name)
import g2rpo_trl
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is made for trl >=1.16,<1.17, but trl 1.17.2 is installed" in done.stderr
    assert 'pip install "trl>=1.16,<1.17"' in done.stderr


def test_missing_trl_names_the_extra(error_without):
    assert 'run: pip install "g2rpo[trl]"' in error_without("g2rpo_trl", "trl")


def test_options_come_from_the_command_line_and_from_yaml(tmp_path):
    given = ["--output_dir", str(tmp_path), "--bf16", "False", "--use_cpu"]
    given += ["--estimator_options", '{"task_stage": null, "decoupled": true}']
    given += ["--length_targets", '{"ocr": [0, 0, 10, 20], "maths": "reasoning"}']
    given += ["--tasks", "ocr", "maths", "--entropy_high", "inf"]
    (args,) = TrlParser(G2RPOConfig).parse_args_and_config(given)
    assert args.estimator_options == {"task_stage": None, "decoupled": True}
    assert args.target_of("ocr").thresholds == (0, 0, 10, 20)
    assert args.entropy_high == np.inf
    path = tmp_path / "run.yaml"
    path.write_text(
        "bf16: false\nuse_cpu: true\ntasks: [ocr, maths]\nlength_calibrate: true\n"
        "length_only_right: accuracy\nlength_targets:\n  ocr: [0, 0, 10, 20]\n"
        "entropy_bounds:\n  maths: [0.1, .inf]\n"
    )
    (args,) = TrlParser(G2RPOConfig).parse_args_and_config(["--config", str(path)])
    assert args.entropy_bounds == {"maths": [0.1, np.inf]}
    assert args.target_of("ocr").thresholds == (0, 0, 10, 20)
    assert args.length_calibrate
    assert args.to_dict()["length_targets"] == {"ocr": [0, 0, 10, 20]}
