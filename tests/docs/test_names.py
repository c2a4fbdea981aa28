"""Keys and commands that pages name in passing exist."""

import re

import pytest
from pydantic import BaseModel

from g2rpo_trainer.config import TrainConfig

from .test_code import PAGES, ROOT, commands, parse

NOT_OURS = {"data.max_response_length", "model.safetensors.index.json", "rewards.py"}


def keys(model, prefix=""):
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


KEYS = set(keys(TrainConfig))
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
PARTS = {key.rpartition(".")[0] for key in KEYS}
KEY = re.compile(rf"`((?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z_]+)+)(?=[`:= ])")


def unknown_keys(text):
    """Return the keys that no configuration has; below a mapping any name may stand."""
    named = set(KEY.findall(text)) - NOT_OURS
    return {key for key in named - KEYS if key.rpartition(".")[0] not in KEYS - SECTIONS - PARTS}


def fault(words):
    """Return why the program does not take these words; arguments may be missing."""
    try:
        parse(words)
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_and_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    assert unknown_keys(text) == set()
    for line in re.findall(r"`(g2rpo [^`]+)`", text):
        if not re.search(r"[A-Z…<\[|]", line):  # a placeholder
            for words in commands(line):
                assert "No such" not in fault(words), line


def test_a_wrong_key_is_found():
    text = "`rollout.batchsize`, `model.lora.rnk: 4`, `rollout.batch_size` and `length.targets.ocr`"
    assert unknown_keys(text) == {"rollout.batchsize", "model.lora.rnk"}
