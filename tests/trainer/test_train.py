"""The trainer's spine: a run, its folder, its resumption, its shaping."""

import json
import math

import numpy as np
import pytest
import torch

from g2rpo_trainer import train
from g2rpo_trainer.data import open_source
from g2rpo_trainer.device import resolve_device
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.scoring import Rewards

from .parts import shaping_of


def read_metrics(config) -> list[dict]:
    from pathlib import Path

    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def comparable(metrics: list[dict]) -> list[dict]:
    """Leave out what the clock decides."""
    return [{name: value for name, value in line.items() if "time" not in name} for line in metrics]


def test_a_run_leaves_its_folder_behind(tiny_run, tmp_path):
    config = tiny_run("output.plots=true", "output.completions=4")
    summary = train(config)
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    tasks = {*config.data.tasks, "mean"}
    assert set(summary["before"]) == set(summary["after"]) == tasks
    assert (summary["steps"], summary["seed"], summary["estimator"]) == (3, 0, "gaussian")
    assert summary["seconds"] > 0
    assert {path.name for path in (folder / "plots").iterdir()} >= {"reward.png", "length.png"}
    assert any((folder / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (folder / "completions.jsonl").open()]
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert {"prompt", "response", "reward", "accuracy", "format", "advantage"} <= set(rows[0])
    assert [row["task"] for row in rows[:4]] == config.data.tasks[:4]
    metrics = read_metrics(config)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        parts = sum(line[f"loss/{term}"] for term in ("policy", "length", "entropy", "kl"))
        assert line["loss/total"] == pytest.approx(parts, abs=1e-5)
        assert {f"reward/{task}" for task in config.data.tasks} <= set(line)
        assert all(value is None or math.isfinite(value) for value in line.values())


def test_a_checkpoint_is_a_hugging_face_folder(tiny_run, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    train(tiny_run())
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-000003")
    AutoModelForImageTextToText.from_pretrained(newest)
    AutoProcessor.from_pretrained(newest)
    assert {path.suffix for path in newest.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_a_run_that_is_made_longer_goes_on(tiny_run):
    """With a constant learning rate it equals the run that was to be so long from the start."""
    settings = ("optimization.schedule=constant", "rollout.max_completion_length=12")
    whole = tiny_run(*settings, folder="whole")
    expected = train(whole)
    train(tiny_run(*settings, "optimization.steps=1", folder="parts"))
    parts = tiny_run(*settings, folder="parts")
    summary = train(parts, resume=True)
    assert comparable(read_metrics(parts)) == comparable(read_metrics(whole))
    assert summary["before"] == expected["before"]
    assert summary["after"] == expected["after"]


def test_a_folder_with_a_run_is_refused(tiny_run):
    config = tiny_run("optimization.steps=1")
    train(config)
    before = read_metrics(config)
    with pytest.raises(RunError, match="--resume"):
        train(config)
    assert read_metrics(config) == before


def test_nothing_to_resume_says_so(tiny_run):
    with pytest.raises(RunError, match="holds no run"):
        train(tiny_run(), resume=True)


def test_a_model_that_is_missing_leaves_nothing_behind(tiny_run, tmp_path):
    with pytest.raises(RunError, match="--model is '/no/such/model'"):
        train(tiny_run("model.name=/no/such/model"))
    assert not (tmp_path / "run").exists()


def test_running_moments_of_ema_grpo_carry_over(tiny_run):
    """Rewards of a second step are scaled by both steps' spread, and so they are after a resume."""
    config = tiny_run("estimator.name=ema-grpo", "length.mode=off")
    groups = tasks = np.zeros(2, np.int64)
    wide, narrow = (Rewards(*np.asarray([[0.0, top]] * 4, np.float32)) for top in (1.0, 0.1))
    lengths = np.asarray([1, 1])
    fresh = shaping_of(config)(narrow, lengths, groups, tasks).policy
    shaping = shaping_of(config)
    shaping(wide, lengths, groups, tasks)
    restored = shaping_of(config)
    restored.load_state_dict(json.loads(json.dumps(shaping.state_dict())))
    later = shaping(narrow, lengths, groups, tasks).policy
    assert np.abs(later).max() < 0.2 * np.abs(fresh).max()
    assert np.array_equal(restored(narrow, lengths, groups, tasks).policy, later)


def test_missing_device_is_named_before_anything_is_written(tiny_run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(RunError, match="--device is 'cuda'"):
        train(tiny_run("model.device=cuda"))
    assert not (tmp_path / "run").exists()
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize(
    "settings",
    [
        ["estimator.name=grpo"],
        ["estimator.task_stage=null", "length.mode=reward"],
        ["length.mode=off", "entropy.weight=0"],
        ["optimization.updates_per_batch=2", "optimization.beta=0.1"],
        ["data.tasks=[maths]", "optimization.aggregation=constant"],
    ],
)
def test_variants_run(tiny_run, settings):
    config = tiny_run("optimization.steps=2", *settings)
    train(config)
    last = read_metrics(config)[-1]
    assert math.isfinite(last["loss/total"])
    if config.length.mode != "term":
        assert last["loss/length"] == 0
    if config.optimization.beta:
        assert last["loss/kl"] > 0


def test_micro_batches_change_a_step_by_rounding_only(tiny_run):
    whole = tiny_run(
        "optimization.steps=1", "optimization.micro_batch_tokens=100000", folder="whole"
    )
    parts = tiny_run("optimization.steps=1", "optimization.micro_batch_tokens=200", folder="parts")
    train(whole)
    train(parts)
    (one,), (many,) = read_metrics(whole), read_metrics(parts)
    for name in ("loss/total", "loss/policy", "loss/length", "loss/entropy", "grad_norm"):
        assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)


def test_data_follow_from_seed_and_position(tiny_run):
    data = tiny_run().data
    draw = [
        open_source(data).training_records(seed=0, position=place, prompts=6) for place in (0, 6, 6)
    ]
    problems = [[record.images[0].tobytes() for record in records] for records in draw]
    assert problems[1] == problems[2] != problems[0]
    assert [record.task for record in draw[0]] == data.tasks


def test_length_ranks_only_right_responses(tiny_run):
    config = tiny_run()
    names = config.data.tasks
    rewards = Rewards(
        *np.asarray([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]], np.float32)
    )
    groups = np.zeros(4, np.int64)
    tasks = np.full(4, names.index("maths"))
    # Target 2, 4, 6, 8: the first is on it, the second half-way, the third far off.
    advantages = shaping_of(config)(rewards, np.asarray([5, 7, 8, 5]), groups, tasks)
    first, second, third, wrong = advantages.length.tolist()
    assert first > second > third
    assert wrong == 0


def test_a_graded_response_counts_from_any_accuracy(tiny_run):
    config = tiny_run("length.targets={grounding: [0, 0, 4, 8]}")
    accuracy = np.asarray([0.3, 0.1, 0.0, 0.0], np.float32)
    rewards = Rewards(accuracy, accuracy, accuracy, accuracy)
    tasks = np.full(4, config.data.tasks.index("grounding"))
    lengths, groups = np.asarray([7, 5, 1, 8]), np.zeros(4, np.int64)
    length = shaping_of(config)(rewards, lengths, groups, tasks).length
    assert length[1] > 0 > length[0]
    assert (length[2:] == 0).all()


def test_a_task_without_a_target_has_no_length_advantage(tiny_run):
    config = tiny_run()
    tasks = np.full(4, config.data.tasks.index("vqa"))
    rewards = Rewards(*np.ones((4, 4), np.float32))
    advantages = shaping_of(config)(rewards, np.asarray([1, 2, 3, 4]), np.zeros(4, np.int64), tasks)
    assert (advantages.length == 0).all()
