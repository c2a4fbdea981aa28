"""Logits of a model in 16 bits are float32, in sampling as in the update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from g2rpo_trainer import draws, shortcuts
from g2rpo_trainer.config import Model
from g2rpo_trainer.draws import Draws
from g2rpo_trainer.logprobs import FromHidden, completion_predictions
from g2rpo_trainer.model import adapting
from g2rpo_trainer.model.head import float32_logits
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.sampling import sample

from .adapters import needs_lora
from .shared_prompt_models import (
    GROUPS,
    MASK,
    make,
    make_one_prompt,
    make_prompts,
    make_responses,
    own_lines,
    with_shared_prompts,
)


def is_rounded(logits):
    """Tell whether logits are all numbers of bfloat16."""
    return torch.equal(logits.float(), logits.bfloat16().float())


@pytest.mark.parametrize("multiple", [1, 64])
def test_tokens_are_drawn_from_logits_that_are_not_rounded(multiple, monkeypatch):
    policy = with_shared_prompts(make("llama", dtype=torch.bfloat16))
    policy = replace(policy, pad_to_multiple_of=multiple)
    seen = []
    real = Draws.tokens

    def tokens(self, scores):
        seen.append(scores)
        return real(self, scores)

    monkeypatch.setattr(draws.Draws, "tokens", tokens)
    sample(policy, make_prompts(policy), num_generations=2, max_completion_length=3)
    assert len(seen) == 3
    assert not any(map(is_rounded, seen))


@pytest.mark.parametrize("packed", [False, True])
def test_both_heads_say_the_same_of_the_same_hidden_states(packed):
    """Rounded logits of this size are wrong by up to 0.03 nats."""
    policy = make("qwen3", dtype=torch.bfloat16)
    rows = (make_prompts(policy), GROUPS, make_responses(), MASK)
    found = []
    for without_logits in (False, True):
        chosen = Shortcuts(packed_rows=packed, without_logits=without_logits)
        with torch.no_grad():
            predictions = completion_predictions(replace(policy, shortcuts=chosen), *rows)
            found.append(predictions.values()[0][MASK])
    assert isinstance(predictions, FromHidden)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_the_check_at_the_start_finds_a_head_that_rounds(monkeypatch, caplog):
    """It compares heads on the same hidden states, more closely than 16 bits would allow."""
    policy, compared = make("qwen3", dtype=torch.bfloat16), []
    monkeypatch.setattr(shortcuts, "_LARGE_VOCABULARY", 0)
    prompt, real = make_one_prompt(policy), shortcuts._disagreement

    def noted(ours, plain, tolerance):
        compared.append((ours.numel(), tolerance))
        return real(ours, plain, tolerance)

    monkeypatch.setattr(shortcuts, "_disagreement", noted)
    assert shortcuts.choose_shortcuts(policy, prompts=prompt).shortcuts.without_logits
    assert (256, shortcuts._HEAD) in compared
    assert not own_lines(caplog)
    head = policy.model.lm_head
    head.register_forward_hook(lambda *call: call[-1].bfloat16())
    monkeypatch.setattr(shortcuts, "_HEAD", 1e-4)
    assert not shortcuts.choose_shortcuts(policy, prompts=prompt).shortcuts.without_logits
    (line,) = own_lines(caplog)
    assert "computed from full logits: log-probabilities differ" in line


def test_a_wider_model_keeps_its_head(random_policy):
    head = random_policy.model.get_output_embeddings()
    with float32_logits(random_policy.model):
        assert "forward" not in vars(head)


@needs_lora
def test_a_head_with_an_adapter():
    policy = make("llama", dtype=torch.bfloat16)
    adapting.attach_adapter(
        policy.model, Model(lora={"rank": 2, "target_modules": ["lm_head"]}), None
    )
    states = torch.randn(2, 32, dtype=torch.bfloat16)
    head = policy.model.get_output_embeddings()
    with torch.no_grad(), float32_logits(policy.model):
        logits = head(states)
    assert logits.dtype == torch.float32
    assert not is_rounded(logits)
