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

from g2rpo_cli.main import main
from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_source
from g2rpo_trainer.record import FORMAT_INSTRUCTION
from g2rpo_trainer.scoring import Scorer
from g2rpo_trl import G2RPOTrainer
from g2rpo_trl.rewards import RecordRewards

from .test_images import build_model, build_processor
from .tiny import config, logs, save_chat_model

ANSWERS = {
    "numerical": ("7", ["<answer>7</answer>", "<answer>8</answer>", "7"]),
    "OCR": (["colour", "color"], ["<think>c</think><answer>color</answer>", "<answer>c</answer>"]),
    "spatial grounding": (
        '{"boxes": [0, 0, 10, 10]}',
        ['<think>b</think><answer>{"boxes": [0, 0, 10, 5]}</answer>', "<answer>[0]</answer>"],
    ),
    "multiple choice": ("B", ["<answer>dog</answer>", "<answer>B</answer>", "<answer>A</answer>"]),
}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["g2rpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def picture(seed):
    values = np.random.default_rng(seed).integers(0, 256, (16, 16 + 16 * (seed % 2), 3))
    return Image.fromarray(values.astype(np.uint8))


def text_rows(count=3):
    """Return rows of every kind of answer, among them one that is a list of texts."""
    rows = []
    for kind, (answer, _) in ANSWERS.items():
        for number in range(count):
            row = {"problem": f"{kind} {number}?", "answer": answer, "problem_type": kind}
            options = {"options": ["cat", "dog"]} if kind == "multiple choice" else {}
            rows.append({**row, **options, "task_type": kind.split()[0]})
    return rows


def loaded(folder, split, cache):
    return load_dataset(str(folder), split=split, cache_dir=str(cache))


def test_rewards_of_converted_rows_are_those_of_the_reference_trainer(tmp_path, monkeypatch):
    path = write(tmp_path / "mixed.jsonl", text_rows())
    run(monkeypatch, "data", "convert", path, "--to", "trl", "-o", tmp_path / "out")
    rows = loaded(tmp_path / "out", "train", tmp_path / "cache")
    settings = load_config(overrides={"data.source": str(path), "model.name": "any"})
    source = open_source(settings.data)
    records = list(source.stored_records(lambda record: record, held_out=False))
    assert [row["prompt"][-1]["content"] for row in rows] == [r.problem for r in records]
    pairs = [(n, text) for n, r in enumerate(records) for text in ANSWERS[r.problem_type][1]]
    texts = [text for _, text in pairs]
    with Scorer(settings, source) as scorer:
        expected = scorer([records[n] for n, _ in pairs], texts, dtype=np.float64)
    columns = {name: [rows[n][name] for n, _ in pairs] for name in ("problem_type", "answer")}
    columns["options"] = [rows[n]["options"] for n, _ in pairs]
    rewards = RecordRewards(workers=0)
    for name in ("accuracy", "format", "structure"):
        found = getattr(rewards, name)(completions=texts, **columns)
        assert found == getattr(expected, name).tolist(), name
    assert len({*expected.accuracy}) > 2


def test_images_stand_where_the_prompt_has_them_and_train(tmp_path, monkeypatch):
    rows = []
    for number in range(14):
        picture(number).save(tmp_path / f"{number}.png")
        problem = f"{number} of <image>?" if number % 2 else f"{number}?"
        row = {"problem": problem, "images": [f"{number}.png"], "answer": str(number)}
        rows.append({**row, "problem_type": "numerical"})
    path = write(tmp_path / "pets.jsonl", rows)
    run(monkeypatch, "data", "convert", path, "--to", "trl", "-o", tmp_path / "out")
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
def exported(tmp_path, monkeypatch):
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
    rows = [
        {"problem": f"{n} + 1?", "answer": str(n + 1), "problem_type": "numerical"}
        for n in range(20)
    ]
    tasks = ({**row, "task_type": ("sums", "box")[n % 2]} for n, row in enumerate(rows))
    data = write(tmp_path / "sums.jsonl", tasks)
    folder = tmp_path / "export"
    run(monkeypatch, "export", "trl", "-c", tmp_path / "run.yaml", "--data", data, "-o", folder)
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
