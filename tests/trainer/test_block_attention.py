"""Packed rows under block masks: the values and gradients of the dense mask."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from g2rpo_trainer.block_attention import (
    ARCHITECTURES,
    BLOCK,
    NAME,
    block_mask,
    blocks_obstacle,
    use_blocks,
)
from g2rpo_trainer.config import Model
from g2rpo_trainer.logprobs import completion_logprobs, packed_predictions, plain_predictions
from g2rpo_trainer.model.adapting import enable_gradient_checkpointing
from g2rpo_trainer.model.loading import with_block_masks
from g2rpo_trainer.model.policy_model import Policy, make_policy
from g2rpo_trainer.packing import pack, row_masks, with_padding
from g2rpo_trainer.policy.build import build_tokenizer
from g2rpo_trainer.row_cost import (
    BLOCK_COST,
    CUDA_COST,
    keys_of_a_token,
    responses_per_row,
)
from g2rpo_trainer.sampling import sample

from .shared_prompt_models import (
    COVERED,
    GROUPS,
    MASK,
    PREFIX_MODELS,
    TEXT,
    assert_packed_equals_plain,
    make,
    make_prompts,
    make_responses,
    own_lines,
    with_shared_prompts,
)


@pytest.fixture
def on_cpu(monkeypatch):
    """Let FlexAttention, uncompiled, compute gradients on a CPU, which only the check forbids."""
    monkeypatch.setattr(flex, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def with_blocks(policy):
    assert blocks_obstacle(policy.model) is None
    use_blocks(policy.model)
    return replace(policy, block_masks=True)


TESTED = [name for name in (*COVERED, *PREFIX_MODELS) if name != "gpt2"]


def test_the_architectures_are_those_tested_here():
    assert {name.removesuffix("_text") for name in TESTED} == ARCHITECTURES
    assert "'gpt2' is not among" in blocks_obstacle(make("gpt2").model)


@pytest.mark.parametrize("name", TESTED)
def test_block_masks_give_what_plain_rows_give(name, on_cpu):
    policy = with_blocks(make(name, dtype=torch.float32))
    assert_packed_equals_plain(policy, make_prompts(policy))


@pytest.mark.parametrize("name", ["qwen3", "mistral", "qwen2_5_vl"])
def test_block_masks_give_what_dense_masks_give_in_float64(name, on_cpu):
    found = []
    for turn in (lambda policy: policy, with_blocks):
        policy = turn(make(name, dtype=torch.float64))
        prompts = make_prompts(policy, lengths=(150, 40, 90))
        prompts = type(prompts)(
            {k: v.double() if v.is_floating_point() else v for k, v in prompts.items()},
            prompts.rows_each,
        )
        logprobs, entropies = packed_predictions(
            policy, prompts, GROUPS, make_responses(), MASK
        ).values()
        ((logprobs + entropies.sin()) * MASK).sum().backward()
        gradients = [weight.grad for weight in policy.model.parameters()]
        found.append([logprobs * MASK, entropies * MASK, *gradients])
    for dense, blocks in zip(*found, strict=True):
        if dense is not None:
            # Logits are float32.
            torch.testing.assert_close(blocks, dense, rtol=1e-5, atol=1e-5)


def test_checkpointed_layers_see_the_block_mask_again(on_cpu):
    policy = with_blocks(make("qwen3"))
    enable_gradient_checkpointing(policy.model)
    assert_packed_equals_plain(policy, make_prompts(policy))


def test_a_row_of_one_response_is_packed_too(on_cpu, monkeypatch):
    policy = with_shared_prompts(with_blocks(make("llama")))
    prompts = make_prompts(policy, lengths=(2,))
    tokens = torch.full((4, 120), 20)
    arguments = (policy, prompts, torch.zeros(4, dtype=torch.int64), tokens, tokens > 0)
    expected, _ = plain_predictions(*arguments).values()
    monkeypatch.setattr("g2rpo_trainer.logprobs.responses_per_row", lambda *_: 1)
    monkeypatch.setattr("g2rpo_trainer.logprobs.plain_predictions", None)
    found, _ = completion_logprobs(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rollouts_are_those_of_sdpa(on_cpu):
    found = []
    for turn in (lambda policy: policy, with_blocks):
        policy = with_shared_prompts(turn(make("qwen3")))
        torch.manual_seed(0)
        found.append(
            sample(policy, make_prompts(policy), num_generations=3, max_completion_length=6)
        )
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.equal(found[0].logprobs, found[1].logprobs)


def test_the_name_of_the_attention_is_not_saved(on_cpu, tmp_path):
    policy = with_blocks(make("qwen2_5_vl"))
    assert policy.model.config.get_text_config()._attn_implementation == NAME
    policy.model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2_5_vl"


def long_rows(name="qwen3"):
    """Return a policy, prompts of up to 1,000 tokens, and 8 responses of up to 800 to each."""
    policy = make(name)
    prompts = make_prompts(policy, lengths=(1000, 900))
    lengths = torch.tensor([800, 700, 620, 333, 128, 1, 500, 799, *[777] * 8])
    mask = torch.arange(800) < lengths[:, None]
    groups = torch.arange(2).repeat_interleave(8)
    return policy, prompts, pack(torch.ones_like(mask, dtype=torch.int64), mask, groups, 2)


def padded(packing, length):
    return with_padding(packing, -(length + packing.tokens.shape[1]) % BLOCK)


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_blocks_are_those_with_a_visible_pair(name):
    policy, prompts, packing = long_rows(name)
    packing = padded(packing, prompts["input_ids"].shape[1])
    dense = row_masks(policy.model, prompts, packing)
    mask = block_mask(dense)
    tiles = dense.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    assert torch.equal(mask.to_dense().bool(), tiles.any(5).any(3))
    for row, query in [(0, 3), (0, 30), (1, 50)]:
        whole = mask.full_kv_indices[row, 0, query, : mask.full_kv_num_blocks[row, 0, query]]
        assert whole.tolist() == tiles[row, 0, query].all(2).all(0).nonzero()[:, 0].tolist()


def test_blocks_leave_out_most_of_a_row_of_eight():
    policy, prompts, packing = long_rows()
    packing = padded(packing, prompts["input_ids"].shape[1])
    mask = block_mask(row_masks(policy.model, prompts, packing))
    assert float(mask.to_dense().float().mean()) < 0.3


def test_the_cost_counts_the_pairs_that_are_computed():
    policy = make("qwen3")
    for prompt, response, count in [(1000, 800, 8), (1000, 800, 1), (300, 64, 8), (64, 1000, 4)]:
        prompts = make_prompts(policy, lengths=(prompt,))
        mask = torch.ones(count, response, dtype=torch.bool)
        packing = pack(mask.long(), mask, torch.zeros(count, dtype=torch.int64), 1)
        row = prompt + packing.tokens.shape[1]
        blocks = block_mask(row_masks(policy.model, prompts, padded(packing, prompt)))
        computed = int(blocks.to_dense().sum()) * BLOCK**2 / row
        assert keys_of_a_token(prompt, response, count, BLOCK) == pytest.approx(computed, rel=0.2)


def test_more_responses_share_a_row_in_blocks_than_under_dense_masks():
    sizes = [responses_per_row(1000, 800, 8, 2048, cost) for cost in (CUDA_COST, BLOCK_COST)]
    assert sizes == [2, 8]


def test_one_kernel_serves_rows_of_all_lengths(on_cpu, monkeypatch):
    """Two without gradients of which one is of a single row, and as many with them."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    options = {"dynamic": True, "fullgraph": True, "backend": counter}
    compiled = torch.compile(flex.flex_attention, **options)
    for is_learning in (False, True):
        for rows, blocks in [(2, 2), (3, 3), (1, 4), (4, 8), (1, 5), (2, 6)]:
            length = blocks * BLOCK
            states = torch.randn(3, rows, 2, length, 16, requires_grad=is_learning).unbind()
            allowed = (torch.rand(rows, 1, length, length) < 0.5).tril()
            allowed[..., 0] = True
            compiled(*states, block_mask=block_mask(allowed))
    assert counter.frame_count <= 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_a_gpu_are_those_of_dense_masks(dtype):
    """In rows of several blocks, and heads as wide as the kernel wants them."""
    import transformers

    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Qwen3Config(**{**TEXT, **sizes}, head_dim=32)
    found = []
    for turn in (lambda policy: policy, with_blocks):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().cuda()
        policy = turn(make_policy(model, SimpleNamespace(tokenizer=build_tokenizer())))
        ids = torch.randint(10, 200, (2, 200), generator=torch.Generator().manual_seed(0))
        prompts = {"input_ids": ids.cuda(), "attention_mask": torch.ones_like(ids).cuda()}
        tokens = ids[:, :150].repeat(3, 1).cuda()
        groups = torch.tensor([0, 1] * 3).cuda()
        values, _ = packed_predictions(policy, prompts, groups, tokens, tokens > 0).values()
        values.sum().backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        found.append((values.detach(), gradients))
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    for dense, blocks in zip(*found, strict=True):
        assert float((dense - blocks).norm() / dense.norm()) < limit


@pytest.mark.slow
def test_the_kernel_of_a_cpu_takes_the_blocks():
    """It skips what the block mask does not list, as that of a GPU does; values only."""
    policy, prompts, packing = long_rows()
    allowed = row_masks(policy.model, prompts, padded(packing, prompts["input_ids"].shape[1]))
    states = torch.randn(3, 2, 2, allowed.shape[-1], 16)
    compiled = torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)
    with torch.no_grad():
        found = compiled(*states, block_mask=block_mask(allowed))
        expected = torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=allowed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    monkeypatch.setattr(Policy, "device", torch.device("cuda"))


def test_an_attention_that_cannot_be_computed_leaves_dense_masks(caplog, as_if_on_a_gpu):
    """FlexAttention has no gradients on a CPU."""
    policy = with_block_masks(make("llama"), Model())
    assert not policy.block_masks
    assert policy.model.config._attn_implementation == "sdpa"
    assert "backward" in own_lines(caplog)[0]
    assert "'eager'" in blocks_obstacle(make("llama", attention="eager").model)


def test_wrong_values_leave_dense_masks(on_cpu, monkeypatch):
    causal = block_mask
    monkeypatch.setattr(
        "g2rpo_trainer.block_attention.block_mask",
        lambda allowed: causal(torch.ones_like(allowed).tril()),
    )
    assert "differ from those of a dense mask" in blocks_obstacle(make("llama").model)


def test_a_policy_on_a_gpu_takes_them_unless_it_names_an_attention(on_cpu, as_if_on_a_gpu):
    assert not with_block_masks(make("llama"), Model(attention="sdpa")).block_masks
    policy = with_block_masks(make("llama"), Model())
    assert policy.block_masks
    assert policy.model.config._attn_implementation == NAME


def test_a_policy_is_left_as_it_is_on_a_cpu(on_cpu):
    policy = with_block_masks(make("llama"), Model())
    assert not policy.block_masks
    assert policy.model.config.get_text_config()._attn_implementation == "sdpa"
