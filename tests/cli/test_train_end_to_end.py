"""The real trainer from the command line, on the policy that comes with the package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from g2rpo_trainer.config import BUILTIN_TASKS

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
SMALL = ["data.eval_items=4", "data.eval_generations=1", "rollout.prompts_per_step=6"]


def g2rpo(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [sys.executable, "-m", "g2rpo_cli", *arguments]
    if arguments[0] == "train" and "--resume" not in arguments:
        command += settings
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_train_resume_eval(tmp_path):
    result = g2rpo("train", "--steps", "2", "--device", "cpu", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "maths" in result.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"]) == {*BUILTIN_TASKS, "mean"}
    assert (summary["steps"], summary["seed"], summary["estimator"]) == (2, 0, "gaussian")
    assert (tmp_path / "run" / "plots" / "reward.png").exists()

    result = g2rpo("train", "--resume", "--steps", "3", "-o", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    explained = {"step", *re.findall(r"`([^`]+)`", METRICS.read_text(encoding="utf-8"))}
    names = {
        name.removesuffix(f"/{name.split('/')[-1]}")
        if name.split("/")[-1] in BUILTIN_TASKS
        else name
        for name in json.loads(lines[-1])
    }
    assert names <= explained

    # The checkpoint is the policy that the run measured last.
    result = g2rpo("eval", "run", "--output", "result.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    measured = json.loads((tmp_path / "result.json").read_text())["reward"]
    assert measured == pytest.approx(summary["after"], abs=1e-6)
