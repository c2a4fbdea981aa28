"""The shortcuts of a policy: chosen once, by a single process and by several together."""

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

from g2rpo_trainer import logprobs, shortcuts
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.shortcuts import choose_shortcuts

from .shared_prompt_models import make, make_one_prompt, own_lines

WORKER = Path(__file__).with_name("shortcuts_worker.py")
ALL = Shortcuts(shared_rollouts=True, packed_rows=True, without_logits=True)


def test_the_choice_is_logged_once(random_policy, monkeypatch, caplog):
    monkeypatch.setattr(shortcuts, "_LARGE_VOCABULARY", 0)
    with caplog.at_level(logging.INFO):
        policy = choose_shortcuts(random_policy)
    assert policy.shortcuts == ALL
    assert random_policy.shortcuts == Shortcuts()
    (record,) = (each for each in caplog.records if each.name == shortcuts.__name__)
    assert record.levelname == "INFO"
    assert "without_logits=True" in record.getMessage()


def test_a_small_vocabulary_keeps_its_logits(random_policy, caplog):
    found = choose_shortcuts(random_policy).shortcuts
    assert found == Shortcuts(shared_rollouts=True, packed_rows=True)
    assert not own_lines(caplog)


def test_a_prompt_longer_than_the_run_allows_is_no_obstacle(random_policy):
    policy = choose_shortcuts(replace(random_policy, max_prompt_length=2))
    assert policy.shortcuts.packed_rows
    assert policy.max_prompt_length == 2


def test_the_check_compares_256_tokens(random_policy, monkeypatch):
    compared = []
    real = shortcuts._disagreement

    def counted(ours, plain, tolerance):
        compared.append(ours.numel())
        return real(ours, plain, tolerance)

    monkeypatch.setattr(shortcuts, "_disagreement", counted)
    choose_shortcuts(random_policy)
    assert compared == [256, 256]


def test_wrong_results_are_found_where_every_token_ends_a_response(monkeypatch, caplog):
    """The check samples behind the end."""
    policy = make("llama")
    policy = replace(policy, eos_ids=tuple(range(policy.model.config.vocab_size)))
    monkeypatch.setattr(logprobs, "next_positions", lambda _, positions: positions.amax(-1) + 4)
    found = choose_shortcuts(policy, prompts=make_one_prompt(policy)).shortcuts
    assert found == Shortcuts(shared_rollouts=True)
    assert "differ from the plain pass by" in caplog.text


def test_the_run_s_random_numbers_are_its_own(random_policy, prompts):
    found = []
    for checks in (True, False):
        policy = random_policy
        torch.manual_seed(1)
        if checks:
            choose_shortcuts(policy, seed=3)
        found.append(sample(policy, prompts, num_generations=2, max_completion_length=4).tokens)
        found.append(torch.rand(1))
    assert torch.equal(found[0], found[2])
    assert found[1] == found[3]


@pytest.mark.slow
def test_ranks_choose_the_same(tmp_path):
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
    for found in (first, second):
        assert found["first"]["shortcuts"] == [True, True, True]
        assert found["first"]["lines"] == []
        assert found["sharded"]["shortcuts"] == [True, True, True]
        assert found["sharded"]["logprobs"] < 1e-5
        assert found["sharded"]["gradients"] < 1e-5
        # One rank alone finds an obstacle.
        assert found["wrong"]["shortcuts"] == [True, False, True]
    # Responses that end at once take no other passes.
    assert first["first"]["passes"] == second["first"]["passes"] > 0
    assert first["sharded"]["passes"] == second["sharded"]["passes"]
    (line,) = first["wrong"]["lines"]
    assert "differ from the plain pass by" in line
    assert second["wrong"]["lines"] == []
