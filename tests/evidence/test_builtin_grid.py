"""The built-in run over variants and seeds, by the command that users call."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from g2rpo_trainer.config import load_config

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "benchmarks/builtin.py")]
RECORD = ROOT / "benchmarks/results/builtin.json"
TINY = (
    "optimization.steps=2",
    "data.eval_items=2",
    "data.eval_generations=1",
    "data.tasks=[ocr, maths]",
    "output.plots=false",
    "output.equity_steps=1",
)


def test_every_variant_is_a_configuration():
    listed = subprocess.run([*COMMAND, "--list"], check=True, capture_output=True, text=True)
    variants = dict(line.split(": ") for line in listed.stdout.splitlines())
    assert len(variants) > 30
    configs = {name: load_config(settings=of.split()) for name, of in variants.items()}
    assert configs["match-all"].estimator.task_stage == "match-all"
    # Apart from the library's default, every variant is another run.
    assert len({config.model_dump_json() for config in configs.values()}) == len(variants)


def test_unknown_variant_is_refused():
    found = subprocess.run([*COMMAND, "guassian"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "no variant guassian; --list shows all" in found.stderr


@pytest.mark.slow
def test_runs_are_paired_by_seed_kept_and_continued(tmp_path):
    runs, page = tmp_path / "runs", tmp_path / "page.md"
    command = [*COMMAND, "gaussian", "mean by task", "--seeds", "0", "1"]
    command += [part for setting in TINY for part in ("--set", setting)]
    command += ["--runs", str(runs), "--output", str(page)]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list(runs.iterdir())) == 4
    text = page.read_text()
    first = next(runs.glob("gaussian-*-0"))
    summary = json.loads((first / "summary.json").read_text())
    assert f"| gaussian | 0 | {summary['after']['ocr']:.3f} |" in text
    rise = summary["after"]["ocr"] - summary["before"]["ocr"]
    assert f"{rise:+.3f} ± " in text.partition("## Change")[2]
    assert text.count(" of 2 |") == 4  # lengths inside their targets
    norms = text.partition("## Gradient norms")[2]
    assert len(re.findall(r"\| \d\.\d\d \| \d\.\d\d \| \d+\.\d \|", norms)) == 4
    rewards = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert len(rewards) == 2

    # What is finished is read; what is not goes on from its checkpoint.
    other = next(runs.glob("mean-by-task-*-1"))
    times = {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    (other / "summary.json").unlink()
    subprocess.run(command, check=True, capture_output=True)
    after = {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    assert {path for path in times if times[path] != after[path]} == {other / "summary.json"}
    assert _without_seconds(page.read_text()) == _without_seconds(text)


@pytest.mark.slow
def test_first_steps_of_a_recorded_run_are_found_again(tmp_path):
    recorded = json.loads(RECORD.read_text())[0]
    settings = [*recorded["settings"], *TINY[1:3], TINY[4]]
    command = [sys.executable, "-m", "g2rpo_cli", "train", "--seed", str(recorded["seed"])]
    command += [part for setting in settings for part in ("--set", setting)]
    log, wanted = tmp_path / "run/metrics.jsonl", recorded["first_rewards"]
    # As many steps in all as in the recorded run, by which the learning rate falls.
    with subprocess.Popen([*command, "--device", "cpu", "-o", "run"], cwd=tmp_path) as process:
        while process.poll() is None and not (log.exists() and _lines(log) >= len(wanted)):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    found = [
        np.mean([step[f"reward/{task}"] for task in recorded["length_after"]])
        for step in map(json.loads, log.read_text().splitlines()[: len(wanted)])
    ]
    # Another machine rounds differently, by which a response among 192 may be another one.
    np.testing.assert_allclose(found, wanted, atol=0.02)


def _lines(path):
    return path.read_bytes().count(b"\n")


def _without_seconds(page):
    return [line.rsplit("|", 2)[0] for line in page.splitlines()]
