"""Which releases of transformers and peft go together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import peft
import pytest
import transformers
from packaging.version import Version
from transformers.integrations import peft as integration

from g2rpo_trainer.config import Lora, Model
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.model.adapting import peft_fault
from g2rpo_trainer.model.loading import load_policy

ROOT = Path(__file__).parents[2]


def test_an_adapter_needs_a_peft_that_transformers_takes(folders, monkeypatch):
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", "99.1")
    named = rf"needs peft >= 99\.1 with transformers {transformers.__version__}.*{peft.__version__}"
    with pytest.raises(RunError, match=rf"model\.lora {named}; .* pip install"):
        load_policy(str(folders("llama")), device="cpu", model=Model(lora=Lora(rank=2)))
    assert not load_policy(str(folders("llama")), device="cpu").has_adapter


def test_an_older_transformers_is_refused(folders, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "5.22.9")
    with pytest.raises(
        RunError, match=r"transformers is 5\.22\.9, but must be (.*) or later"
    ) as told:
        load_policy(str(folders("llama")), device="cpu")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (
        re.search(r'"(transformers>=.*)"', str(told.value))[1]
        in (project["optional-dependencies"]["torch"])
    )


def test_tests_of_adapters_are_left_out_on_later_releases_only():
    """On the versions of CI none of them may be skipped."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    is_later = Version(transformers.__version__) > Version(pinned["transformers"])
    assert is_later or peft_fault() is None
