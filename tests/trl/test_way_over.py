"""From `g2rpo train` to TRL: converted records, and an exported run that trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_source
from g2rpo_trainer.record import FORMAT_INSTRUCTION
from g2rpo_trainer.scoring import Scorer
from g2rpo_trl import G2RPOTrainer
from g2rpo_trl.rewards import RecordRewards

from ..way_over import ANSWERS, rows_of_every_kind, rows_of_two_tasks, write
from .test_images import build_model, build_processor
from .tiny import config, logs, save_chat_model


def picture(seed):
    values = np.random.default_rng(seed).integers(0, 256, (16, 16 + 16 * (seed % 2), 3))
    return Image.fromarray(values.astype(np.uint8))


def loaded(folder, split, cache):
    return load_dataset(str(folder), split=split, cache_dir=str(cache))


def test_rewards_of_converted_rows_are_those_of_the_reference_trainer(tmp_path, g2rpo):
    path = write(tmp_path / "mixed.jsonl", rows_of_every_kind())
    assert g2rpo("data", "convert", path, "--to", "trl", "-o", tmp_path / "out")[0] == 0
    rows = loaded(tmp_path / "out", "train", tmp_path / "cache")
    settings = load_config(overrides={"data.source": str(path), "model.name": "any"})
    source = open_source(settings.data)
    records = list(source.stored_records(lambda record: record, held_out=False))
    assert [row["prompt"][-1]["content"] for row in rows] == [r.problem for r in records]
    pairs = [(n, text) for n, r in enumerate(records) for text in ANSWERS[r.problem_type][1]]
    texts = [text for _, text in pairs]
    with Scorer(settings.rewards, settings.data, source) as scorer:
        expected = scorer([records[n] for n, _ in pairs], texts, dtype=np.float64)
    columns = {name: [rows[n][name] for n, _ in pairs] for name in ("problem_type", "answer")}
    columns["options"] = [rows[n]["options"] for n, _ in pairs]
    rewards = RecordRewards(workers=0)
    for name in ("accuracy", "format", "structure"):
        found = getattr(rewards, name)(completions=texts, **columns)
        assert found == getattr(expected, name).tolist(), name
    assert len({*expected.accuracy}) > 2


def test_images_stand_where_the_prompt_has_them_and_train(tmp_path, g2rpo):
    rows = []
    for number in range(14):
        picture(number).save(tmp_path / f"{number}.png")
        problem = f"{number} of <image>?" if number % 2 else f"{number}?"
        row = {"problem": problem, "images": [f"{number}.png"], "answer": str(number)}
        rows.append({**row, "problem_type": "numerical"})
    path = write(tmp_path / "pets.jsonl", rows)
    assert g2rpo("data", "convert", path, "--to", "trl", "-o", tmp_path / "out")[0] == 0
    data = loaded(tmp_path / "out", "train", tmp_path / "cache")
    assert set(data["task_type"]) == {"pets"}
    for row in data:
        system, user = row["prompt"]
        assert system["content"] == [{"type": "text", "text": FORMAT_INSTRUCTION}]
        number = int(row["answer"])
        kinds = [part["type"] for part in user["content"]]
        assert kinds == (["text", "image", "text"] if number % 2 else ["image", "text"])
        (image,) = row["images"]
        assert np.array_equal(np.asarray(image), np.asarray(picture(number)))
    processor = build_processor()
    rewards = RecordRewards(workers=0)
    trainer = G2RPOTrainer(
        build_model(processor.tokenizer),
        [rewards.accuracy, rewards.format],
        config(tmp_path / "run", max_steps=1),
        train_dataset=data,
        processing_class=processor,
    )
    trainer.train()
    assert np.isfinite(logs(trainer)[0]["loss"])


@pytest.fixture
def exported(tmp_path, g2rpo):
    """Return the folder of an exported run of one step, on a tiny model."""
    model = save_chat_model(tmp_path / "model")
    settings = {
        "model": {"name": str(model), "device": "cpu"},
        "data": {"eval_items": 2, "eval_generations": 2},
        "rollout": {"num_generations": 4, "prompts_per_step": 4, "max_completion_length": 8},
        "optimization": {"steps": 1, "updates_per_batch": 2, "micro_batch_tokens": 24},
        "rewards": {"workers": 0},
        "length": {"targets": {"sums": [0, 0, 2, 6]}, "only_right": False},
        "entropy": {"bounds": {"box": [0.0, 0.1]}},
        "output": {"dir": str(tmp_path / "run"), "trackers": []},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    data = write(tmp_path / "sums.jsonl", rows_of_two_tasks())
    folder = tmp_path / "export"
    flags = ("-c", tmp_path / "run.yaml", "--data", data, "-o", folder)
    assert g2rpo("export", "trl", *flags)[0] == 0
    return folder


def test_an_exported_run_trains_its_steps(exported, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(
        [sys.executable, exported / "train.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    # Two optimiser updates are a step.
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    entry = next(each for each in state["log_history"] if "loss" in each)
    assert {"reward/sums", "reward/box", "loss/entropy", "loss/length"} < entry.keys()
    assert any("eval_reward/sums" in each for each in state["log_history"])
    assert (tmp_path / "run" / "model.safetensors").exists()
