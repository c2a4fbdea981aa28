"""Where prompts cannot be shared exactly, each response gets its own, and the log says why."""

import pytest
import torch

from g2rpo_trainer import logprobs, packing
from g2rpo_trainer.logprobs import plain_predictions
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.shortcuts import PACKED_ROWS, SHARED_ROLLOUTS, choose_shortcuts, packing_obstacle

from .shared_prompt_models import (
    COVERED,
    GROUPS,
    MASK,
    PREFIX_MODELS,
    make,
    make_one_prompt,
    make_prompts,
    make_responses,
    own_lines,
)


def choose(policy, setting="auto"):
    return choose_shortcuts(policy, setting, prompts=make_one_prompt(policy)).shortcuts


@pytest.mark.parametrize("name", [*COVERED, *PREFIX_MODELS])
def test_tested_architectures_share_prompts(name, caplog):
    chosen = choose(make(name))
    assert chosen == Shortcuts(shared_rollouts=name in COVERED, packed_rows=True)
    assert len(own_lines(caplog)) == (name not in COVERED)


def test_the_lists_name_what_is_tested():
    tested = {name.removesuffix("_text") for name in (*COVERED, *PREFIX_MODELS)}
    assert tested == PACKED_ROWS
    assert {name.removesuffix("_text") for name in COVERED} | {"bloom"} == SHARED_ROLLOUTS


@pytest.mark.parametrize(
    ("name", "setting", "reasons"),
    [
        ("bloom", "auto", ["passes, each response computes its own: the model takes no position"]),
        ("mamba", "auto", ["rollouts, each response computes its own: 'mamba' is not among", ""]),
        ("mamba", "try", ["in the rollouts, each response", "the log-probability and update"]),
        ("lfm2", "auto", ["'lfm2' is not among the tested", "the model has layers of conv"]),
        ("lfm2", "try", ["cache is a DynamicLayer, LinearAttentionLayer", "layers of conv"]),
        ("olmo2", "auto", ["'olmo2' is not among the tested", "shared_prompts: try the check"]),
        ("olmo2", "try", []),
        ("paligemma", "auto", ["the rollouts, each response computes its own: 'paligemma' is not"]),
        ("paligemma", "try", ["the tokens of a prompt see its last one"]),
    ],
)
def test_other_architectures_go_the_plain_way(name, setting, reasons, caplog):
    attention = "sdpa" if name == "paligemma" else "eager"
    chosen = choose(make(name, attention=attention), setting)
    lines = sorted(own_lines(caplog), key=lambda line: "rollouts" not in line)
    assert len(lines) == len(reasons)
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line
    assert chosen.shared_rollouts == (not any("in the rollouts" in line for line in lines))
    assert chosen.packed_rows == (not any("update passes" in line for line in lines))


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_tokens_that_see_each_other_both_ways_are_in_the_prompt_only(name, monkeypatch, caplog):
    policy, tokens = make(name), make_responses()
    arguments = (policy, make_prompts(policy), GROUPS)
    whole, _ = plain_predictions(*arguments, tokens, MASK).values()
    tokens[:, -1] = 30
    other, _ = plain_predictions(*arguments, tokens, MASK).values()
    before = MASK[:, :-1]
    assert torch.equal(other[:, :-1][before], whole[:, :-1][before])
    # And there they matter: without them the check of packed rows must fail.
    monkeypatch.setattr(packing, "own_prompt_masks", lambda model, prompts: {})
    assert not choose(policy).packed_rows
    assert "differ from the plain pass by" in caplog.text


def test_attention_that_takes_no_mask_falls_back():
    policy = make("llama")
    policy.model.config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2'" in packing_obstacle(policy.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_result_is_noticed(dtype, monkeypatch, caplog):
    """The check at the start of a run must be able to fail, in 16 bits, too."""
    policy = make("llama", dtype=dtype)
    assert choose(policy) == Shortcuts(shared_rollouts=True, packed_rows=True)
    assert not own_lines(caplog)
    monkeypatch.setattr(logprobs, "next_positions", lambda _, positions: positions.amax(-1) + 4)
    assert choose(policy) == Shortcuts(shared_rollouts=True, packed_rows=False)
    (line,) = own_lines(caplog)
    assert "update passes, each response computes its own: log-probabilities differ from" in line


def test_switched_off_runs_nothing(monkeypatch, caplog):
    policy = make("llama")
    monkeypatch.setattr(policy.model, "forward", None)
    assert choose(policy, "off") == Shortcuts()
    assert not own_lines(caplog)
