"""A run on records of one's own: tasks, prompts and rewards come from the file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from g2rpo_trainer import train
from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.record import FORMAT_INSTRUCTION, conversation
from g2rpo_trainer.tasks import TASKS


@pytest.fixture
def records(tmp_path):
    """Forty records of two tasks."""
    rows = []
    for index in range(40):
        task, name = (("ocr", "signs"), ("maths", "sums"))[index % 2]
        record = TASKS[task].item(5, index).record
        (image,) = record.images
        image.save(tmp_path / f"{index}.png")
        rows.append({**record.as_row(), "images": [f"{index}.png"], "task_type": name})
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_run_takes_its_tasks_from_the_file(records, tmp_path):
    config = load_config(
        overrides={
            "data.source": str(records),
            "data.eval_items": 2,
            "data.eval_generations": 2,
            "rollout.prompts_per_step": 4,
            "rollout.num_generations": 2,
            "optimization.steps": 2,
            "output.dir": str(tmp_path / "run"),
        }
    )
    assert config.data.tasks == []
    summary = train(config)
    assert set(summary["after"]) == {"signs", "sums", "mean"}
    assert summary["steps"] == 2
    source = open_run(config)
    assert sorted(source.tasks) == ["signs", "sums"]
    kinds = {name: task.reward_kind for name, task in source.summary().tasks.items()}
    assert kinds == {"signs": "character OCR", "sums": "numerical"}
    assert load_config(tmp_path / "run" / "config.yaml") == config


@pytest.mark.parametrize("model", ["llava", "builtin"])
def test_prompts_with_no_image_one_and_two_share_a_step(model, folders, tmp_path):
    images = (TASKS["ocr"].item(5, index).record.images[0] for index in range(24))
    rows = []
    for index in range(24):
        names = [f"{index}-{number}.png" for number in range(index % 3)]
        for name in names:
            next(images).save(tmp_path / name)
        row = {"problem": f"What is {index} + 1?", "images": names, "answer": index + 1}
        rows.append({**row, "problem_type": "numerical", "task_type": "sums"})
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    config = load_config(
        overrides={
            "model.name": "builtin" if model == "builtin" else str(folders(model)),
            "model.device": "cpu",
            "data.source": str(path),
            "data.eval_items": 2,
            "data.eval_generations": 1,
            "length.mode": "off",
            "entropy.low": 0.01,
            "entropy.high": 0.1,  # there is something to learn, whatever the rewards
            "rollout.prompts_per_step": 9,
            "rollout.num_generations": 2,
            "rollout.max_completion_length": 8,
            "optimization.steps": 2,
            "output.plots": False,
            "output.dir": str(tmp_path / "run"),
        }
    )
    source = open_run(config)
    for position in (0, 9):
        records = source.training_records(seed=0, position=position, prompts=9)
        assert {len(record.images) for record in records} == {0, 1, 2}
    train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["grad_norm"] > 0 for line in lines)


def test_a_conversation_keeps_its_turns_and_gets_the_instruction():
    def message(role, text):
        return {"role": role, "content": [{"type": "text", "text": text}]}

    record, system = TASKS["ocr"].item(5, 0).record, message("system", "be kind")
    turns = [message("user", "7+5="), message("assistant", "13"), message("user", "No.")]
    bare = conversation(replace(record, messages=turns))
    kind = conversation(replace(record, messages=[system, *turns]))
    assert bare[1:] == kind[1:] == turns
    assert [part["text"] for part in bare[0]["content"]] == [FORMAT_INSTRUCTION]
    assert [part["text"] for part in kind[0]["content"]] == ["be kind", FORMAT_INSTRUCTION]
    assert len(system["content"]) == 1  # the record is as it was
    (_, question) = conversation(record)
    assert question["content"] == [{"type": "image"}, {"type": "text", "text": record.problem}]


def test_rewards_of_reasoning_gym_are_its_own():
    config = load_config(overrides={"data.source": "reasoning-gym:chain_sum"})
    assert "reasoning-gym" in open_run(config).reward_functions


def test_tasks_whose_names_look_like_parts_of_metrics(tmp_path):
    names = ["old", "v1.5", "mean reward"]
    rows = [
        {"problem": f"What is {n} + 1?", "answer": n + 1, "problem_type": "numerical"}
        | {"task_type": names[n % 3]}
        for n in range(24)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    config = load_config(
        overrides={
            "model.device": "cpu",
            "data.source": str(path),
            "data.eval_items": 2,
            "data.eval_generations": 1,
            "length.mode": "off",
            'rollout.limits["v1.5"]': 3,
            "rollout.prompts_per_step": 3,
            "rollout.num_generations": 2,
            "rollout.max_completion_length": 8,
            "optimization.steps": 1,
            "output.plots": False,
            "output.dir": str(tmp_path / "run"),
        }
    )
    summary = train(config)
    assert set(summary["after"]) == {*names, "mean"}
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["completions/max_length/v1.5"] <= 3
    assert all(f"reward/{name}" in metrics for name in names)
    assert load_config(tmp_path / "run" / "config.yaml").rollout.limits == {"v1.5": 3}
