"""Where prompts cannot be shared exactly, each response gets its own, and the log says why."""

from dataclasses import replace

import pytest
import torch

from g2rpo_trainer.model.trials import Trials
from g2rpo_trainer.passes import masks, packed
from g2rpo_trainer.passes.forward import (
    completion_logprobs,
    packing_trial,
    plain_predictions,
)
from g2rpo_trainer.sampling import sample

from .shared_prompt_models import GROUPS, MASK, make, make_prompts, make_responses, own_lines


def run_both_parts(policy, prompts):
    torch.manual_seed(6)
    completions = sample(policy, prompts, num_generations=2, max_completion_length=4)
    with torch.no_grad():
        passed = completion_logprobs(policy, prompts, GROUPS, make_responses(), MASK)
    return completions, passed


def assert_falls_back(policy, caplog, *reasons):
    """Twice through both parts: the plain results, and one line in the log for each reason."""
    prompts = make_prompts(policy)
    expected = run_both_parts(replace(policy, trials=Trials("off")), prompts)
    assert not own_lines(caplog)
    for _ in range(2):
        found = run_both_parts(policy, prompts)
        assert torch.equal(found[0].tokens, expected[0].tokens)
        assert torch.equal(found[1][0], expected[1][0])
    lines = own_lines(caplog)
    assert len(lines) == len(reasons)
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        (
            "bloom",
            ["update passes, each response computes its own: the model takes no position_ids"],
        ),
        ("mamba", ["the rollouts, each response", "the log-probability and update passes"]),
        ("lfm2", ["cache is a DynamicLayer, LinearAttentionLayer", "the model has layers of conv"]),
    ],
)
def test_other_architectures_fall_back(name, reasons, caplog):
    assert_falls_back(make(name, attention="eager"), caplog, *reasons)


def test_a_prompt_that_sees_its_last_token_is_encoded_for_each_response(caplog):
    policy = make("paligemma")
    prompts, found = make_prompts(policy), []
    for each in (policy, policy, replace(policy, trials=Trials("off"))):
        torch.manual_seed(6)
        found.append(sample(each, prompts, num_generations=2, max_completion_length=4).tokens)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])
    (line,) = own_lines(caplog)
    assert "in the rollouts" in line
    assert "the tokens of a prompt see its last one" in line


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_tokens_that_see_each_other_both_ways_are_in_the_prompt_only(name, monkeypatch):
    policy, tokens = make(name), make_responses()
    arguments = (policy, make_prompts(policy), GROUPS)
    whole, _ = plain_predictions(*arguments, tokens, MASK).values()
    tokens[:, -1] = 30
    other, _ = plain_predictions(*arguments, tokens, MASK).values()
    before = MASK[:, :-1]
    assert torch.equal(other[:, :-1][before], whole[:, :-1][before])
    # And there they matter: without them the trial of packed rows must fail.
    monkeypatch.setattr(masks, "own_prompt_masks", lambda model, prompts: {})
    obstacle = packing_trial(*arguments, tokens, MASK)
    assert "differ from the plain pass by" in obstacle


def test_attention_that_takes_no_mask_falls_back():
    policy = make("llama")
    policy.model.config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2'" in packed.packing_obstacle(policy.model)


def test_a_wrong_result_is_noticed(monkeypatch, caplog):
    """The check at the start of a run must be able to fail."""

    def off_by_three(prompts, positions):
        return positions.amax(-1) + 4

    monkeypatch.setattr(packed, "next_positions", off_by_three)
    assert_falls_back(make("llama"), caplog, "differ from the plain pass by")


def test_switched_off_is_not_tried(caplog):
    policy = replace(make("llama"), trials=Trials("off"))
    run_both_parts(policy, make_prompts(policy))
    assert not own_lines(caplog)
    assert not policy.trials.allows("rollout", lambda: None)
    assert not policy.trials.allows("forward", lambda: None)
