"""Prompts that are read while the step before updates the policy: the same run, the same errors."""

import json
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from g2rpo_trainer import loop, train
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.prompts import ahead
from g2rpo_trainer.prompts.encoding import Prompt
from g2rpo_trainer.record import BrokenRecord


@pytest.fixture
def read(monkeypatch):
    """Return the names of the threads that have encoded a training prompt."""
    threads = []
    real = Prompt.encoded

    def noted(policy, record):
        threads.append(threading.current_thread().name)
        return real(policy, record)

    monkeypatch.setattr(ahead, "Prompt", type("Noted", (), {"encoded": staticmethod(noted)}))
    return threads


def files_of(config):
    """Return the run's lines without times, and the bytes of its last checkpoint."""
    folder = Path(config.output.dir)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if "time" not in k} for line in lines]
    last = max((folder / "checkpoints").glob("step-*"))
    tensors = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    return kept, (folder / "completions.jsonl").read_text(), tensors


@pytest.mark.parametrize("mode", ["off", "signal"])
def test_a_run_is_the_same_to_the_bit(tiny_run, monkeypatch, read, mode):
    settings = (f"rollout.dynamic_sampling.mode={mode}", "optimization.learning_rate=1e-3")
    if mode == "signal":
        # Some prompts must have one.
        settings += ("model.name=builtin", "rollout.max_completion_length=24")
    found = []
    for is_ahead in (True, False):
        config = tiny_run(*settings, folder=f"{mode}-{is_ahead}")
        if not is_ahead:
            monkeypatch.setattr(loop.PromptReader, "ahead", lambda *_: nullcontext())
        read.clear()
        train(config)
        found.append(files_of(config))
        in_threads = sum("ThreadPool" in name for name in read)
        assert (in_threads > 0) == is_ahead
        if mode == "off":
            # Each prompt once, and none behind the last step.
            assert len(read) == 18
            assert in_threads == (12 if is_ahead else 0)
    assert found[0] == found[1]


def test_a_resumed_run_is_the_same(tiny_run, read):
    whole, parts = (tiny_run(folder=name) for name in ("whole", "parts"))
    train(whole)
    optimization = parts.optimization.model_copy(update={"steps": 2})
    train(parts.model_copy(update={"optimization": optimization}))
    train(parts, resume=True)
    assert files_of(whole) == files_of(parts)


def rows(folder):
    """Write text records, and return their file."""
    lines = [
        {"problem": f"What is {n} + 1?", "answer": str(n + 1), "problem_type": "numerical"}
        for n in range(40)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def fragile(tmp_path, tiny_run, monkeypatch):
    """Return a run of records of which one, first read in its second step, is refused."""
    seen, real = [], Prompt.encoded

    def encoded(policy, record):
        seen.append(record.problem)
        if record.problem == bad:
            raise BrokenRecord("its picture is torn")
        return real(policy, record)

    def describe(*settings, folder="run"):
        return tiny_run(
            f"data.source={rows(tmp_path)}",
            "data.tasks=[]",
            "length.mode=off",
            "length.targets={}",
            *settings,
            folder=folder,
        )

    bad = None
    monkeypatch.setattr(ahead, "Prompt", type("Noted", (), {"encoded": staticmethod(encoded)}))
    train(describe(folder="first"))
    bad = seen[8]
    return describe


def test_a_broken_record_ends_the_run_in_its_own_step(fragile, capsys):
    config = fragile(folder="second")
    with pytest.raises(RunError, match=r"rows\.jsonl.*: its picture is torn"):
        train(config)
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


def test_a_record_that_is_left_out_is_counted_in_its_own_step(fragile):
    config = fragile("data.skip_broken=true", folder="second")
    train(config)
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["data/skipped"] for line in lines] == [0, 1, 1]


def test_an_interrupted_update_leaves_no_thread(tiny_run, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr("g2rpo_trainer.update.Learner.update", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run())
    assert threading.active_count() == before
