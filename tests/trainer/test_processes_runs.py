"""Whole runs in two processes: the same as in one, whoever has which part of the model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from .launched import REPLICAS, SHARDS, TORCHRUN, run, settings, start

pytestmark = pytest.mark.slow


def lines_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def numbers(line: dict) -> dict:
    """Return the metrics but the clock's and those that are no finite numbers."""
    return {k: v for k, v in line.items() if "time" not in k and isinstance(v, int | float)}


def assert_equal_runs(one: Path, other: Path, steps: int) -> None:
    """The same samples, rewards and losses; the same files in the checkpoints."""
    found, expected = lines_of(one, "metrics.jsonl"), lines_of(other, "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    for ours, theirs in zip(found, expected, strict=True):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-4, abs=1e-5)
    samples = lines_of(one, "completions.jsonl")
    assert [row["response"] for row in samples] == [
        row["response"] for row in lines_of(other, "completions.jsonl")
    ]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    assert summaries[0]["after"] == pytest.approx(summaries[1]["after"])
    last = Path("checkpoints") / f"step-{steps:06d}"
    names = [sorted(path.name for path in (run / last).iterdir()) for run in (one, other)]
    assert names[0] == names[1]
    tensors = [name for name in names[0] if name.endswith(".safetensors")]
    assert len(tensors) == 2
    for name in tensors:
        assert_equal_tensors(one / last / name, other / last / name)


def assert_equal_tensors(one: Path, other: Path) -> None:
    ours, theirs = load_file(one), load_file(other)
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.items()
    }
    for key, tensor in ours.items():
        # Half of what a weight may move: some have no gradient but rounding.
        assert float((tensor - theirs[key]).abs().max()) < 5e-4, key


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of four steps in one process, and one of the same that stops after two."""
    folder = tmp_path_factory.mktemp("alone")
    code, output = run((), *settings(folder / "run", "builtin"), "--steps", "4")
    assert code == 0, output
    return folder / "run"


def go_back(run_folder: Path, folder: Path, step: int) -> Path:
    """Return a copy of a run as it was after a step."""
    shutil.copytree(run_folder, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)
    return folder


def test_the_run_is_worth_comparing(alone):
    lines = lines_of(alone, "metrics.jsonl")
    assert sum(line["grad_norm"] > 0 for line in lines) >= 3
    assert len({row["response"] for row in lines_of(alone, "completions.jsonl")}) > 10


@pytest.mark.parametrize("launcher", [REPLICAS, SHARDS, TORCHRUN], ids=["ddp", "fsdp", "torchrun"])
def test_two_processes_make_the_run_of_one(alone, tmp_path, launcher):
    """Three prompts a step, three items a task: one process has two of them, the other one."""
    code, output = run(launcher, *settings(tmp_path / "run", "builtin"), "--steps", "4")
    assert code == 0, output
    assert output.count("step 4/4") == 1
    assert output.count("everything is in") == 1
    assert_equal_runs(tmp_path / "run", alone, 4)


@pytest.mark.parametrize(
    "launchers",
    [((), SHARDS), (SHARDS, REPLICAS), (REPLICAS, ())],
    ids=["1-fsdp", "fsdp-ddp", "ddp-1"],
)
def test_a_run_goes_on_in_another_number_of_processes(alone, tmp_path, launchers):
    first, second = launchers
    folder = tmp_path / "run"
    if first:
        code, output = run(first, *settings(folder, "builtin"), "--steps", "4")
        assert code == 0, output
        folder = go_back(folder, tmp_path / "back", 2)
    else:
        folder = go_back(alone, folder, 2)
    code, output = run(second, "--resume", "-o", str(folder))
    assert code == 0, output
    assert_equal_runs(folder, alone, 4)


def test_an_adapter_and_a_divided_base(tmp_path):
    """The run of one process in parts of the model, half of it anew in replicas.

    What a step learns from, and the weights of its entropy terms, follow from all responses.
    """
    more = [
        "model.lora.rank=4",
        "optimization.beta=0.1",
        "output.equity_steps=0",
        "rollout.dynamic_sampling.mode=signal",
        "rollout.dynamic_sampling.max_tries=2",
        "entropy.control=adaptive",
        "entropy.control_rate=0.5",
        "entropy.low=0",
        "entropy.high=0.001",
    ]
    folders = {name: tmp_path / name for name in ("alone", "shards")}
    for name, launcher in (("alone", ()), ("shards", SHARDS)):
        arguments = settings(folders[name], "builtin", *more)
        code, output = run(launcher, *arguments, "--steps", "4")
        assert code == 0, output
    lines = lines_of(folders["alone"], "metrics.jsonl")
    assert max(line.get("kl", 0) for line in lines) > 1e-5
    assert any(line["sampling/dropped"] > 0 for line in lines)
    assert lines[-1]["entropy_weight/ocr"] != lines[0]["entropy_weight/ocr"]
    checkpoint = folders["alone"] / "checkpoints" / "step-000004"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    folders["back"] = go_back(folders["shards"], tmp_path / "back", 2)
    shutil.rmtree(folders["back"] / "final")
    code, output = run(REPLICAS, "--resume", "-o", str(folders["back"]))
    assert code == 0, output
    for name in ("shards", "back"):
        assert_equal_runs(folders[name], folders["alone"], 4)
        merged = (folders[each] / "final" / "model.safetensors" for each in (name, "alone"))
        assert_equal_tensors(*merged)


def test_what_counts_for_how_much_is_that_of_all_responses(tmp_path):
    """Truncated responses, quantiles of entropies, old responses and task weights."""
    more = [
        "rollout.max_completion_length=20",
        "rollout.prompts_per_step=6",
        "optimization.mask_truncated_completions=all",
        "optimization.top_entropy_quantile=0.5",
        "optimization.updates_per_batch=2",
        "optimization.off_policy_mask_threshold=0.0001",
        "task_weights.adapt=1",
        "length.mode=off",
    ]
    folders = {name: tmp_path / name for name in ("alone", "replicas", "shards")}
    for name, launcher in (("alone", ()), ("replicas", REPLICAS), ("shards", SHARDS)):
        arguments = settings(folders[name], "builtin", *more)
        code, output = run(launcher, *arguments, "--steps", "3")
        assert code == 0, output
    lines = lines_of(folders["alone"], "metrics.jsonl")
    assert 0 < lines[0]["completions/masked_ratio"] < 1
    assert 0.4 < lines[0]["frac_high_entropy"] < 1
    assert max(line["off_policy/masked_ratio"] for line in lines) > 0
    assert lines[-1]["task_weight/ocr"] != 1
    for name in ("replicas", "shards"):
        assert_equal_runs(folders[name], folders["alone"], 3)


def test_a_process_without_prompts_and_sixteen_bits(random_policy_folder, tmp_path):
    """Replicas and parts of a model of bfloat16 weights come to the same masters."""
    more = ["model.dtype=bfloat16", "rollout.prompts_per_step=1", "output.equity_steps=0"]
    states = []
    for launcher in (REPLICAS, SHARDS):
        folder = tmp_path / str(len(states))
        arguments = settings(folder, str(random_policy_folder), *more)
        code, output = run(launcher, *arguments, "--steps", "2")
        assert code == 0, output
        states.append(load_file(folder / "checkpoints" / "step-000002" / "optimizer.safetensors"))
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("master/") for key in ours)
    for key, tensor in ours.items():
        assert float((tensor - theirs[key]).abs().max()) <= 1e-4, key


def children_of(process) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


def wait_for(path: Path, process) -> None:
    until = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("target", ["last", "all"])
def test_a_signal_saves_and_stops_all(random_policy_folder, tmp_path, target):
    """To one of the processes, or as a terminal and the launcher send it: twice to each."""
    folder = tmp_path / "run"
    more = ["output.save_steps=1000", "data.eval_items=1"]
    arguments = settings(folder, str(random_policy_folder), *more)
    with start(TORCHRUN, *arguments, "--steps", "2000") as process:
        wait_for(folder / "metrics.jsonl", process)
        if target == "last":
            os.kill(max(children_of(process)), signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=200)
    steps = len(lines_of(folder, "metrics.jsonl"))
    saved = [path.name for path in (folder / "checkpoints").iterdir()]
    assert saved == [f"step-{steps:06d}"], output
    assert output.count("continue with: g2rpo train --resume") == 1
    assert not (folder / "summary.json").exists()


def test_an_error_before_the_run_is_told_once(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    code, output = run(TORCHRUN, *settings(tmp_path, "builtin"))
    assert code != 0
    assert output.count("already holds a run") == 1
    code, output = run(TORCHRUN, *settings(tmp_path / "run", str(tmp_path / "nothing")))
    assert code != 0
    assert output.count("but there is no such folder") == 1
    assert not (tmp_path / "run").exists()
