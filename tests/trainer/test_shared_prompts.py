"""Prompts that are computed once for all of their responses: the same results as one by one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from g2rpo_trainer import train
from g2rpo_trainer.logprobs import completion_logprobs, packed_predictions, plain_predictions
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.policy_model import Shortcuts
from g2rpo_trainer.packing import split_groups
from g2rpo_trainer.prompts.batching import select_rows
from g2rpo_trainer.sampling import sample

from .shared_prompt_models import (
    COVERED,
    GROUPS,
    MASK,
    PREFIX_MODELS,
    assert_packed_equals_plain,
    make,
    make_prompts,
    make_responses,
    with_shared_prompts,
)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*COVERED, *PREFIX_MODELS])
def test_packed_pass_equals_the_plain_one(name, attention):
    policy = make(name, attention=attention)
    assert_packed_equals_plain(policy, make_prompts(policy))


@pytest.fixture(scope="module")
def embedded():
    return load_policy("builtin", device="cpu")


def test_packed_pass_of_the_embedded_policy(embedded, prompts):
    assert_packed_equals_plain(embedded, select_rows(prompts, slice(0, 3)))


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("temperature", [1.0, 1e-5], ids=["sampled", "greedy"])
def test_rollouts_are_the_same(name, temperature):
    policy = make(name)
    prompts = make_prompts(policy)
    found = []
    for is_shared in (True, False):
        torch.manual_seed(3)
        one = replace(policy, shortcuts=Shortcuts(shared_rollouts=is_shared))
        options = {"max_completion_length": 6, "temperature": temperature}
        found.append(sample(one, prompts, num_generations=3, **options))
    shared, plain = found
    assert torch.equal(shared.tokens, plain.tokens)
    tolerance = 1e-5 / min(temperature, 1.0)
    torch.testing.assert_close(shared.logprobs, plain.logprobs, rtol=0, atol=tolerance)
    torch.testing.assert_close(shared.entropies, plain.entropies, rtol=0, atol=tolerance)
    # Nothing but the sampling has drawn random numbers.
    assert len({float(torch.rand(1)) for _ in found}) == 2


def test_rollouts_of_the_embedded_policy_are_the_same(embedded, prompts):
    found = []
    for is_shared in (True, False):
        torch.manual_seed(4)
        policy = replace(embedded, shortcuts=Shortcuts(shared_rollouts=is_shared))
        found.append(sample(policy, prompts, num_generations=8, max_completion_length=24))
        found.append(torch.rand(1))
    assert torch.equal(found[0].tokens, found[2].tokens)
    assert found[1] == found[3]


@pytest.mark.parametrize("name", [*COVERED, *PREFIX_MODELS])
def test_first_update_has_ratio_one(name):
    policy = with_shared_prompts(make(name), rollouts=name in COVERED)
    prompts = make_prompts(policy)
    torch.manual_seed(5)
    completions = sample(policy, prompts, num_generations=3, max_completion_length=6)
    groups = torch.arange(3).repeat_interleave(3)
    with torch.no_grad():
        logprobs, _ = completion_logprobs(
            policy, prompts, groups, completions.tokens, completions.mask
        )
    ratios = torch.exp(logprobs - completions.logprobs)[completions.mask]
    assert (ratios - 1).abs().max() < 2e-5


def count_rows(module, counts):
    return module.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )


def test_an_image_is_looked_at_once_a_prompt():
    policy = with_shared_prompts(make("llava"))
    prompts, tokens = make_prompts(policy), make_responses()
    looked: list[int] = []
    hook = count_rows(policy.model.model.vision_tower, looked)
    sample(policy, prompts, num_generations=4, max_completion_length=4)
    completion_logprobs(policy, prompts, GROUPS, tokens, MASK)
    hook.remove()
    assert looked == [3, 3]


def test_a_group_costs_one_prompt_and_its_responses():
    policy = with_shared_prompts(make("llama"))
    prompts, tokens = make_prompts(policy, lengths=(20,)), make_responses()
    groups, mask = torch.zeros(7, dtype=torch.int64), torch.ones_like(MASK)
    arguments = (policy, prompts, groups, tokens, mask)
    embedded_tokens: list[int] = []
    hook = policy.model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: embedded_tokens.append(args[0].numel())
    )
    completion_logprobs(*arguments)
    plain_predictions(*arguments)
    hook.remove()
    # The last token of a response predicts nothing, so the packed row leaves it out.
    assert embedded_tokens == [20 + 7 * 4, 7 * (20 + 5)]


@pytest.mark.parametrize("name", ["llama", "qwen3_vl"])
def test_parts_of_groups_give_what_the_whole_gives(name):
    policy = make(name)
    prompts, tokens = make_prompts(policy), make_responses()
    whole, _ = packed_predictions(policy, prompts, GROUPS, tokens, MASK).values()
    for rows in (slice(0, 2), slice(2, 4), slice(1, 7)):
        kept, groups = GROUPS[rows].unique(return_inverse=True)
        part, _ = packed_predictions(
            policy, select_rows(prompts, kept), groups, tokens[rows], MASK[rows]
        ).values()
        torch.testing.assert_close(part[MASK[rows]], whole[rows][MASK[rows]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_long_groups_are_split_over_rows(size):
    policy = make("qwen3_vl")
    prompts, tokens = make_prompts(policy), make_responses()
    rows, kept = split_groups(GROUPS, size)
    assert rows.bincount().max() == size
    assert torch.equal(kept[rows], GROUPS)
    split, _ = packed_predictions(policy, select_rows(prompts, kept), rows, tokens, MASK).values()
    whole, _ = packed_predictions(policy, prompts, GROUPS, tokens, MASK).values()
    torch.testing.assert_close(split[MASK], whole[MASK], rtol=0, atol=1e-5)


def test_responses_much_longer_than_the_prompt_do_not_share_a_row(monkeypatch):
    policy = with_shared_prompts(make("llama"))
    prompts = make_prompts(policy, lengths=(2,))
    tokens = torch.full((4, 120), 20)
    arguments = (policy, prompts, torch.zeros(4, dtype=torch.int64), tokens, tokens > 0)
    monkeypatch.setattr("g2rpo_trainer.logprobs.packed_predictions", None)
    found, _ = completion_logprobs(*arguments)
    assert torch.equal(found, plain_predictions(*arguments).values()[0])


def test_nothing_but_empty_responses():
    policy = with_shared_prompts(make("llama"))
    prompts = make_prompts(policy)
    logprobs, entropies = completion_logprobs(
        policy, prompts, GROUPS, make_responses(), torch.zeros_like(MASK)
    )
    assert logprobs.shape == entropies.shape == MASK.shape
    (logprobs * torch.zeros_like(logprobs)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.model.parameters())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_images_in_one_line_are_selected_by_prompt(name):
    prompts = make_prompts(make(name))
    pixels, grids = prompts["pixel_values"], prompts["image_grid_thw"]
    # 24 patches of one image, 8 and 12 of two, 16 of one.
    chosen = select_rows(prompts, torch.tensor([1, 0, 1]))
    assert torch.equal(chosen["image_grid_thw"], grids[[1, 2, 0, 1, 2]])
    expected = torch.cat([pixels[24:44], pixels[:24], pixels[24:44]])
    assert torch.equal(chosen["pixel_values"], expected)
    last = select_rows(prompts, slice(2, 3))
    assert torch.equal(last["pixel_values"], pixels[44:])
    assert torch.equal(last["input_ids"], prompts["input_ids"][2:])


def test_a_run_learns_the_same_either_way(tiny_run, monkeypatch):
    shared, plain = (
        tiny_run(
            f"rollout.shared_prompts={setting}",
            "rollout.num_generations=3",
            "optimization.steps=2",
            # Cuts through groups.
            "optimization.micro_batch_tokens=150",
            "optimization.beta=0.1",
            folder=setting,
        )
        for setting in ("auto", "off")
    )
    train(shared)
    for place in ("sampling.expanded_prompts", "logprobs.packed_predictions"):
        monkeypatch.setattr(f"g2rpo_trainer.{place}", None)
    train(plain)
    for ours, expected in zip(metrics_of(shared), metrics_of(plain), strict=True):
        for name, value in expected.items():
            if "time" not in name and value is not None:
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def metrics_of(config):
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
