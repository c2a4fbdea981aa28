"""Decoding as on a GPU: the same responses from fixed buffers, and a host that does not wait."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.prefill import prefill
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.shortcuts import SHARED_ROLLOUTS, choose_shortcuts
from g2rpo_trainer.stopping import TOKENS_A_LOOK

from .counted import Operations, Transfers
from .shared_prompt_models import (
    COVERED,
    GROUPS,
    MASK,
    make,
    make_one_prompt,
    make_prompts,
    make_responses,
    with_shared_prompts,
)

# An image family, two with windows, and one with absolute positions.
FAMILIES = ["llama", "qwen2_5_vl", "gemma3", "mistral", "gpt2"]


def sampled(policy, prompts, length=24, **options):
    torch.manual_seed(3)
    return sample(policy, prompts, num_generations=3, max_completion_length=length, **options)


def as_on_a_gpu(policy, multiple=64):
    return replace(policy, pad_to_multiple_of=multiple)


@pytest.mark.parametrize("multiple", [2, 64])
@pytest.mark.parametrize("name", COVERED)
def test_responses_are_those_of_generate(name, multiple):
    """With windows narrower than the rows, too, where a new token takes the place of an old one."""
    policy = with_shared_prompts(make(name))
    prompts = make_prompts(policy)
    options = {"limits": [24, 9, 17], "temperature": 0.7}
    expected = sampled(policy, prompts, **options)
    found = sampled(as_on_a_gpu(policy, multiple), prompts, **options)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.mask, expected.mask)
    assert found.texts == expected.texts
    assert torch.equal(found.ended, expected.ended)
    for ours, theirs in (
        (found.logprobs, expected.logprobs),
        (found.entropies, expected.entropies),
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_every_architecture_that_shares_prompts_is_compared():
    names = {name.removesuffix("_text") for name in COVERED}
    assert SHARED_ROLLOUTS - names == {"bloom"}  # it takes no positions, and `generate` decodes


def test_a_model_without_positions_is_decoded_by_generate():
    policy = with_shared_prompts(make("bloom", attention="eager"))
    prompts = make_prompts(policy)
    expected, found = sampled(policy, prompts), sampled(as_on_a_gpu(policy), prompts)
    assert torch.equal(found.tokens, expected.tokens)


def test_eager_attention_decodes_the_same():
    policy = with_shared_prompts(make("gemma3_text", attention="eager"))
    prompts = make_prompts(policy)
    expected, found = sampled(policy, prompts), sampled(as_on_a_gpu(policy), prompts)
    assert torch.equal(found.tokens, expected.tokens)


def test_a_single_response_is_decoded_the_same():
    policy = with_shared_prompts(make("llama"))
    prompts, options = make_prompts(policy), {"num_generations": 1, "max_completion_length": 11}
    torch.manual_seed(0)
    expected = sample(policy, prompts, **options)
    torch.manual_seed(0)
    found = sample(as_on_a_gpu(policy), prompts, **options)
    assert torch.equal(found.tokens, expected.tokens)


def test_a_stop_text_ends_responses_at_the_same_token(random_policy, prompts):
    policy = with_shared_prompts(random_policy)
    ended = []
    for stop in ("e", "<answer>", " "):
        expected = sampled(policy, prompts, stop=stop)
        found = sampled(as_on_a_gpu(policy), prompts, stop=stop)
        assert torch.equal(found.tokens, expected.tokens)
        assert found.texts == expected.texts
        ended.append(int(expected.ended.sum()))
    assert ended[0] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rollout_has_one_shape_of_prompts_and_one_of_tokens(name):
    policy = as_on_a_gpu(with_shared_prompts(make(name)))
    prompts = make_prompts(policy)
    with Transfers() as prefilled:
        prefill(policy, prompts)
    shapes = []
    for length in (9, 40):
        with Transfers() as seen:
            sampled(policy, prompts, length)
        shapes.append(len(seen.attention_shapes))
    # Sliding and full layers differ in their keys.
    kinds = 2 if name == "gemma3" else 1
    assert shapes == [len(prefilled.attention_shapes) + kinds] * 2
    plain = with_shared_prompts(make(name))
    with Transfers() as seen:
        sampled(plain, prompts, 40)
    if name != "mistral":
        assert len(seen.attention_shapes) > 30


@pytest.mark.parametrize("stop", [None, "e"])
def test_the_host_does_not_wait_for_each_token(random_policy, prompts, stop):
    policy = as_on_a_gpu(with_shared_prompts(random_policy))
    policy = replace(policy, eos_ids=())
    waits = []
    for length in (2 * TOKENS_A_LOOK, 6 * TOKENS_A_LOOK):
        with Operations() as operations, Transfers() as transfers:
            sampled(policy, prompts, length, stop=stop)
        waits.append(sum(operations.waits.values()) + sum(transfers.calls.values()))
    looks = 4
    # To see whether all are complete; for a text also the tokens, which of them are new, and rows.
    assert waits[1] - waits[0] <= looks * (1 if stop is None else 3 + TOKENS_A_LOOK)


def test_generate_waits_for_each_token(random_policy, prompts):
    """The test above can fail."""
    policy = replace(with_shared_prompts(random_policy), eos_ids=())
    waits = []
    for length in (8, 40):
        with Operations() as operations:
            sampled(policy, prompts, length)
        waits.append(sum(operations.waits.values()))
    assert waits[1] - waits[0] >= 32


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("without_logits", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_padded_passes_say_the_same(name, packed, without_logits):
    policy = make(name)
    policy = replace(policy, shortcuts=Shortcuts(packed_rows=packed, without_logits=without_logits))
    rows = (make_prompts(policy), GROUPS, make_responses(), MASK)
    expected = completion_logprobs(policy, *rows)
    with Transfers() as seen:
        found = completion_logprobs(as_on_a_gpu(policy), *rows)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == MASK.shape
        torch.testing.assert_close(ours[MASK], theirs[MASK], rtol=0, atol=1e-5)
    if name not in ("qwen2_5_vl", "gemma3"):
        assert {keys[-2] % 64 for _, keys, _ in seen.attention_shapes} == {0}


def test_the_check_at_the_start_compares_the_decoding_of_a_gpu():
    policy = as_on_a_gpu(make("llama"))
    found = choose_shortcuts(policy, prompts=make_one_prompt(policy)).shortcuts
    assert found.shared_rollouts
    assert found.packed_rows
