import json

import pytest
from PIL import Image

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_source


@pytest.fixture
def write(tmp_path):
    """Return a function that writes rows (or texts as they are) as JSON lines: the path."""

    def file(rows, name="sums.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return file


@pytest.fixture
def picture(tmp_path):
    """Return a function that saves a picture of one colour and returns its name."""

    def save(name="red.png", colour="red"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), colour).save(path)
        return name

    return save


def sums(count, task="sums", **columns):
    """Return different checked rows in the paper's format."""
    return [
        {
            "problem": f"What is {number} + 1?",
            "answer": str(number + 1),
            "problem_type": "numerical",
            "task_type": task,
            **columns,
        }
        for number in range(count)
    ]


def opened(path, **settings):
    """Open a source as a run does, with settings of the section data."""
    keys = {f"data.{key.replace('__', '.')}": value for key, value in settings.items()}
    return open_source(load_config(overrides={"data.source": str(path), **keys}).data)


def records_of(source):
    """Return every record of a source, trained on or held out."""
    training = sum(task.training for task in source.summary().tasks.values())
    # One epoch of every task, however the tasks are mixed: enough steps, then distinct.
    found = source.training_records(seed=0, position=0, prompts=training)
    held = [record for task in source.tasks for record in source.held_out_records(task, 10**6)]
    return found + held
