"""State is in TRL's checkpoints: a resumed run equals an uninterrupted one."""

from __future__ import annotations

import json

import pytest
import torch

from .tiny import TASKS, logs, rows, trainer, vowels

STATEFUL = {
    "estimator": "ema-grpo",
    "entropy_control": "adaptive",
    "entropy_high": 0.5,
    "length_calibrate": True,
    "length_only_right": "vowels",
    "length_calibration": {"warmup_steps": 1, "min_samples": 1, "max_change": 0.5},
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 4,
}


@pytest.mark.parametrize("options", [STATEFUL, {"save_strategy": "steps", "max_steps": 4}])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, options):
    # TRL's sampler begins anew in an epoch that a resumed run begins with.
    options = {**options, "save_steps": 2, "train_dataset": rows(24)}
    whole = trainer(tmp_path, **options)
    whole.train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    timeless = [
        [{k: v for k, v in entry.items() if k != "step_time"} for entry in logs(each)]
        for each in (whole, resumed)
    ]
    assert len(timeless[0]) == 4
    assert timeless[0] == timeless[1]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_state_is_json_with_the_names_of_the_tasks(tmp_path):
    trainer(tmp_path, **STATEFUL).train()
    state = json.loads((tmp_path / "checkpoint-4" / "g2rpo_state.json").read_text())
    assert state["tasks"] == list(TASKS)
    assert state["length"]["steps"] == 4
    assert state["entropy_weights"][0] > 0.02
    assert all(state["ema"]["seen"])


def test_what_follows_from_the_configuration_leaves_no_file(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "checkpoint-2").is_dir()
    assert not (tmp_path / "checkpoint-2" / "g2rpo_state.json").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"estimator": "gaussian"}, "got .* with ema"),
        ({"train_dataset": rows(6).filter(lambda row: row["task_type"] != "tail")}, "'tail'"),
    ],
)
def test_state_of_another_run_is_refused(tmp_path, change, text):
    options = {"estimator": "ema-grpo", "save_strategy": "steps", "save_steps": 2}
    options |= {"reward_funcs": vowels, "per_device_train_batch_size": 16}
    trainer(tmp_path, **options).train()
    other = trainer(tmp_path, **{**options, **change})
    with pytest.raises(ValueError, match=text):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_checkpoint_without_the_state_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    other = trainer(tmp_path, estimator="ema-grpo")
    with pytest.raises(
        ValueError, match=r"with ema, got \[\] with nothing; resume with the options"
    ):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
