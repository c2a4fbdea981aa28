"""The trainer on a GPU: its responses, its update and a run are those of a CPU.

Without a GPU the same tests run with the rows and buffers of one.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from g2rpo_trainer import train
from g2rpo_trainer.decoding import step
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.optimizer import MasterAdamW
from g2rpo_trainer.prompts.batching import Prompts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.shortcuts import with_compiled_decoding

from .shared_prompt_models import GROUPS, MASK, make, make_prompts, make_responses

FAMILIES = ["llama", "qwen2_5_vl", "gemma3", "mistral"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def moved(policy, device):
    """Return the policy as it is on a GPU."""
    return replace(
        policy,
        model=copy.deepcopy(policy.model).to(device),
        banned_ids=policy.banned_ids.to(device),
        pad_to_multiple_of=64,
        shortcuts=Shortcuts(shared_rollouts=True, packed_rows=True, without_logits=True),
    )


def on(device, prompts):
    return Prompts({name: tensor.to(device) for name, tensor in prompts.items()}, prompts.rows_each)


@pytest.mark.parametrize("name", FAMILIES)
def test_responses_are_those_of_a_cpu(name, device):
    policy = make(name)
    prompts = make_prompts(policy)
    found = []
    for place in ("cpu", device):
        there = moved(policy, place)
        torch.manual_seed(4)
        options = {"num_generations": 3, "max_completion_length": 20}
        found.append(sample(there, on(place, prompts), **options))
    ours, theirs = found
    assert torch.equal(ours.tokens, theirs.tokens.cpu())
    torch.testing.assert_close(ours.logprobs, theirs.logprobs.cpu(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recorded_step_draws_the_same_tokens(name, device):
    """On a GPU all tokens but the first two are replays of a CUDA graph."""
    policy = replace(moved(make(name), device), eos_ids=())
    prompts, found = on(device, make_prompts(policy)), []
    # Twice, as the memory of the first graph is given back.
    for run in (step, step, None):
        torch.manual_seed(4)
        options = {"num_generations": 3, "max_completion_length": 20}
        found.append(sample(replace(policy, compiled_step=run), prompts, **options))
    for ours in found[:2]:
        assert torch.equal(ours.tokens, found[2].tokens)
        torch.testing.assert_close(ours.logprobs, found[2].logprobs, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_a_compiled_step_is_recorded():
    policy = with_compiled_decoding(moved(make("llama"), "cuda"))
    assert policy.compiled_step is not None
    found = []
    for each in (policy, replace(policy, compiled_step=None)):
        torch.manual_seed(4)
        prompts = on("cuda", make_prompts(policy))
        found.append(sample(each, prompts, num_generations=3, max_completion_length=20))
    assert torch.equal(found[0].tokens, found[1].tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_passes_and_gradients_are_those_of_a_cpu(name, device):
    policy, found = make(name), []
    prompts = make_prompts(policy)
    for place in ("cpu", device):
        there = moved(policy, place)
        rows = (tensor.to(place) for tensor in (GROUPS, make_responses(), MASK))
        groups, tokens, mask = rows
        logprobs, entropies = completion_logprobs(there, on(place, prompts), groups, tokens, mask)
        (logprobs[mask].sum() + entropies[mask].sum()).backward()
        gradients = [weight.grad for weight in there.model.parameters() if weight.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        found.append((logprobs[mask].cpu(), torch.nn.utils.get_total_norm(gradients).cpu()))
    torch.testing.assert_close(*(each[0] for each in found), rtol=0, atol=1e-4)
    torch.testing.assert_close(*(each[1] for each in found), rtol=1e-3, atol=0)


def test_an_optimiser_steps_as_on_a_cpu(device):
    states = []
    for place in ("cpu", device):
        weights = [torch.nn.Parameter(torch.ones(50, dtype=torch.bfloat16, device=place))]
        optimizer = MasterAdamW(weights, lr=1e-3)
        for share in (1.0, -2.0, 3.0):
            (share * weights[0].sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(optimizer.masters[0].detach().cpu())
        assert optimizer.defaults["fused"] == (True if place == "cuda" else None)
    torch.testing.assert_close(*states, rtol=1e-6, atol=0)


def test_a_deterministic_run_repeats_itself(tiny_run, device):
    settings = [f"model.device={device}", "model.deterministic=true", "output.trackers=[]"]
    ends = [train(tiny_run(*settings, folder=str(number)))["after"] for number in range(2)]
    assert ends[0] == ends[1]
