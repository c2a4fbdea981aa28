"""Shortcuts that are tried once: by one process, and by several together."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from g2rpo_trainer.model.trials import Trials
from g2rpo_trainer.passes import head, packed
from g2rpo_trainer.passes.shortcuts import find_shortcuts
from g2rpo_trainer.sampling import sample

from .shared_prompt_models import make, make_prompts

WORKER = Path(__file__).with_name("trials_worker.py")


def fails():
    raise RuntimeError("no\n  such layer")


@pytest.mark.parametrize(
    ("find_obstacle", "line"),
    [
        (lambda: "a wall", "log-probabilities are computed from full logits: a wall"),
        (fails, "log-probabilities are computed from full logits: RuntimeError: no such layer"),
    ],
)
def test_an_obstacle_is_found_once_and_said_once(find_obstacle, line, caplog):
    trials = Trials()
    with caplog.at_level(logging.WARNING):
        assert not trials.allows("head", find_obstacle)
        assert not trials.allows("head", lambda: None)
        trials.settle("head", lambda: None)
        assert not trials.allows("head", lambda: None)
    assert [record.getMessage() for record in caplog.records] == [line]


def test_all_shortcuts_of_a_policy(random_policy, prompts, monkeypatch, caplog):
    monkeypatch.setattr(head, "_LARGE_VOCABULARY", 0)
    policy = replace(random_policy, trials=Trials())
    find_shortcuts(policy, prompts)
    assert policy.trials.are_over
    assert all(policy.trials.allows(each, lambda: "?") for each in ("rollout", "forward", "head"))
    assert not caplog.records
    # Known now: nothing is computed again.
    monkeypatch.setattr(policy.model, "forward", None)
    find_shortcuts(policy, prompts)


def test_a_small_vocabulary_keeps_its_logits(random_policy, prompts):
    policy = replace(random_policy, trials=Trials())
    find_shortcuts(policy, prompts)
    assert policy.trials._verdicts == {"rollout": True, "forward": True}


def test_switched_off(random_policy, prompts, monkeypatch):
    policy = replace(random_policy, trials=Trials("off"))
    monkeypatch.setattr(policy.model, "forward", None)
    find_shortcuts(policy, prompts)
    assert policy.trials._verdicts == {"rollout": False, "forward": False}


def test_wrong_results_are_found_in_trial_responses(monkeypatch, caplog):
    """Even if every token ends a response: the trial goes on behind the end."""
    policy = make("llama")
    entries = policy.model.config.vocab_size
    policy = replace(policy, eos_ids=tuple(range(entries)))
    monkeypatch.setattr(packed, "next_positions", lambda prompts, positions: positions.amax(-1) + 4)
    find_shortcuts(policy, make_prompts(policy))
    assert policy.trials._verdicts == {"rollout": True, "forward": False}
    assert "differ from the plain pass by" in caplog.text


def test_the_run_s_random_numbers_are_its_own(random_policy, prompts):
    found = []
    for tries in (True, False):
        policy = replace(random_policy, trials=Trials())
        torch.manual_seed(1)
        if tries:
            find_shortcuts(policy, prompts)
        found.append(sample(policy, prompts, num_generations=2, max_completion_length=4).tokens)
        found.append(torch.rand(1))
    assert torch.equal(found[0], found[2])
    assert found[1] == found[3]


@pytest.mark.slow
def test_processes_come_to_the_same_verdicts(tmp_path):
    output = tmp_path / "found.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(output)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads(output.read_text())
    assert first["alone"] == {}
    allowed = {"head": True, "rollout": True, "forward": True}
    for found in (first, second):
        assert found["first"]["verdicts"] == allowed
        assert found["first"]["lines"] == []
        assert found["second"]["passes"] == 0
        assert found["divided"]["verdicts"] == allowed
        assert found["divided"]["logprobs"] < 1e-5
        assert found["divided"]["gradients"] < 1e-5
        assert found["wrong"]["verdicts"] == allowed | {"forward": False}
    # Prompts of other lengths, and responses that end at once, take no other passes.
    assert first["first"]["passes"] == second["first"]["passes"] > 0
    assert first["divided"]["passes"] == second["divided"]["passes"] == first["first"]["passes"]
    (line,), (other,) = (found["wrong"]["lines"] for found in (first, second))
    assert line.endswith("another process found an obstacle")
    assert "differ from the plain pass by" in other
