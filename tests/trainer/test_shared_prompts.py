"""Prompts that are computed once for all of their responses: the same results as one by one."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from g2rpo_torch.policy.build import build_tokenizer
from g2rpo_torch.trainer import train
from g2rpo_torch.trainer.inputs.prompts import Prompts, select_rows
from g2rpo_torch.trainer.model.loading import load_policy
from g2rpo_torch.trainer.model.policy_model import make_policy
from g2rpo_torch.trainer.model.trials import Trials
from g2rpo_torch.trainer.passes import masks, packed
from g2rpo_torch.trainer.passes.forward import (
    completion_logprobs,
    packing_trial,
    plain_predictions,
)
from g2rpo_torch.trainer.passes.packed import packed_predictions
from g2rpo_torch.trainer.passes.packing import split_groups
from g2rpo_torch.trainer.rollout.sampling import sample

VOCABULARY = 208  # that of the embedded policy's tokenizer
IMAGE, VISION_START, VISION_END = 4, 5, 6
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 32,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}

TEXT_MODELS = {
    "llama": transformers.LlamaConfig(**TEXT),
    "qwen2": transformers.Qwen2Config(**TEXT),
    "qwen3": transformers.Qwen3Config(**TEXT, head_dim=8),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "mistral": transformers.MistralConfig(**TEXT, sliding_window=6),
    "gemma3_text": transformers.Gemma3TextConfig(
        **TEXT,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
IMAGE_MODELS = {
    "llava": transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**SIGLIP, vision_use_head=False),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    ),
    "smolvlm": transformers.SmolVLMConfig(
        vision_config=SIGLIP,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        pad_token_id=0,
    ),
    "qwen2_5_vl": transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": QWEN_ROPE},
        vision_config={**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
        **QWEN_TOKENS,
    ),
    "qwen3_vl": transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": QWEN_ROPE},
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
        **QWEN_TOKENS,
    ),
    # The tokens of an image see each other both ways, in a window narrower than the image, too.
    "gemma3": transformers.Gemma3Config(
        text_config={
            **TEXT,
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
    ),
}
# All tokens of a prompt see each other both ways.
PREFIX_MODELS = {
    "paligemma": transformers.PaliGemmaConfig(
        text_config={**TEXT, "model_type": "gemma", "head_dim": 8},
        vision_config={**SIGLIP, "vision_use_head": False, "projection_dim": 32},
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    ),
}
OTHER_MODELS = {
    "lfm2": transformers.Lfm2Config(**TEXT, layer_types=["conv", "full_attention"]),
    "bloom": transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "mamba": transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0
    ),
}
COVERED = [*TEXT_MODELS, *IMAGE_MODELS]

# Three prompts: one with four responses, one with two, one with one, in no order.
GROUPS = torch.tensor([0, 0, 0, 2, 1, 1, 0])
LENGTHS = torch.tensor([5, 3, 0, 4, 1, 5, 2])
MASK = torch.arange(5) < LENGTHS[:, None]


def make(name, *, attention="sdpa", dtype=torch.float32):
    """Return a policy whose weights are large enough for every token to matter."""
    torch.manual_seed(0)
    with_images = {**IMAGE_MODELS, **PREFIX_MODELS}
    config = copy.deepcopy({**TEXT_MODELS, **with_images, **OTHER_MODELS}[name])
    has_images = name in with_images
    auto = (
        transformers.AutoModelForImageTextToText
        if has_images
        else transformers.AutoModelForCausalLM
    )
    model = auto.from_config(config, attn_implementation=attention, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return make_policy(model, SimpleNamespace(tokenizer=build_tokenizer()))


def make_prompts(policy, lengths=(7, 4, 9)):
    """Return prompts of different lengths, with images where the model takes them."""
    torch.manual_seed(1)
    images, extra, rows_each = make_images(policy.model.config.model_type, len(lengths))
    rows = [
        image + torch.randint(10, VOCABULARY, (length,)).tolist()
        for image, length in zip(images, lengths, strict=True)
    ]
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    ids = torch.tensor([[0] * pad + row for pad, row in zip(padding, rows, strict=True)])
    mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
    if "image_grid_thw" in extra:
        extra["mm_token_type_ids"] = (ids == IMAGE).long()
    if policy.model.config.model_type == "gemma3":
        extra["token_type_ids"] = (ids == IMAGE).long()
    if policy.model.config.model_type == "paligemma":
        extra["token_type_ids"] = torch.zeros_like(ids)
    return Prompts({"input_ids": ids, "attention_mask": mask, **extra}, rows_each)


def make_images(model_type, count):
    """Return the image tokens of each prompt, what the processor would give, and its rows."""
    if model_type in ("llava", "gemma3", "paligemma"):
        return [[IMAGE] * 16] * count, {"pixel_values": torch.randn(count, 3, 32, 32)}, {}
    if model_type == "smolvlm":
        seen = torch.ones(count, 1, 32, 32, dtype=torch.bool)
        pixels = torch.randn(count, 1, 3, 32, 32)
        return [[IMAGE] * 4] * count, {"pixel_values": pixels, "pixel_attention_mask": seen}, {}
    if model_type not in ("qwen2_5_vl", "qwen3_vl"):
        return [[]] * count, {}, {}
    # Different shapes, and two images in the second prompt.
    shapes = [[(4, 6)], [(2, 4), (6, 2)], [(4, 4)]][:count]
    tokens = [
        [t for h, w in each for t in (VISION_START, *[IMAGE] * (h * w // 4), VISION_END)]
        for each in shapes
    ]
    grid = torch.tensor([(1, h, w) for each in shapes for h, w in each])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 4 * 4)
    rows_each = {
        "pixel_values": [sum(h * w for h, w in each) for each in shapes],
        "image_grid_thw": [len(each) for each in shapes],
    }
    return tokens, {"pixel_values": pixels, "image_grid_thw": grid}, rows_each


def make_responses():
    torch.manual_seed(2)
    return torch.randint(10, VOCABULARY, MASK.shape)


def gradients(policy, results):
    """Return the gradients of a function in which every token has its own weight."""
    logprobs, entropies = results
    weights = torch.linspace(-1, 1, MASK.numel()).view(MASK.shape)
    policy.model.zero_grad()
    ((weights * logprobs + 0.3 * weights.flip(0) * entropies) * MASK).sum().backward()
    found = {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def assert_packed_equals_plain(policy, prompts):
    arguments = (policy, prompts, GROUPS, make_responses(), MASK)
    shared = packed_predictions(*arguments).values()
    plain = plain_predictions(*arguments).values()
    for ours, expected in zip(shared, plain, strict=True):
        torch.testing.assert_close(ours[MASK], expected[MASK], rtol=1e-5, atol=1e-5)
    expected, ours = gradients(policy, plain), gradients(policy, shared)
    assert set(ours) == set(expected)
    # The gradient of a key's bias is zero but for rounding; hence the share of the largest.
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * largest, name


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
    for setting in ("auto", "off"):
        torch.manual_seed(3)
        one = replace(policy, trials=Trials(setting))
        options = {"max_completion_length": 6, "temperature": temperature}
        found.append(sample(one, prompts, num_generations=3, **options))
        assert one.trials.allows("rollout", lambda: "asked again") == (setting == "auto")
    shared, plain = found
    assert torch.equal(shared.tokens, plain.tokens)
    tolerance = 1e-5 / min(temperature, 1.0)
    torch.testing.assert_close(shared.logprobs, plain.logprobs, rtol=0, atol=tolerance)
    torch.testing.assert_close(shared.entropies, plain.entropies, rtol=0, atol=tolerance)
    # Nothing but the sampling has drawn random numbers.
    assert len({float(torch.rand(1)) for _ in found}) == 2


def test_rollouts_of_the_embedded_policy_are_the_same(embedded, prompts):
    found = []
    for setting in ("auto", "off"):
        torch.manual_seed(4)
        policy = replace(embedded, trials=Trials(setting))
        found.append(sample(policy, prompts, num_generations=8, max_completion_length=24))
        found.append(torch.rand(1))
    assert torch.equal(found[0].tokens, found[2].tokens)
    assert found[1] == found[3]


@pytest.mark.parametrize("name", [*COVERED, *PREFIX_MODELS])
def test_first_update_has_ratio_one(name):
    policy = make(name)
    prompts = make_prompts(policy)
    torch.manual_seed(5)
    completions = sample(policy, prompts, num_generations=3, max_completion_length=6)
    groups = torch.arange(3).repeat_interleave(3)
    with torch.no_grad():
        logprobs, _ = completion_logprobs(
            policy, prompts, groups, completions.tokens, completions.mask
        )
    assert policy.trials.allows("forward", lambda: "asked again")
    ratios = torch.exp(logprobs - completions.logprobs)[completions.mask]
    assert (ratios - 1).abs().max() < 2e-5


def count_rows(module, counts):
    return module.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )


def test_an_image_is_looked_at_once_a_prompt():
    policy = make("llava")
    prompts, tokens = make_prompts(policy), make_responses()
    sample(policy, prompts, num_generations=2, max_completion_length=2)
    completion_logprobs(policy, prompts, GROUPS, tokens, MASK)
    looked: list[int] = []
    hook = count_rows(policy.model.model.vision_tower, looked)
    sample(policy, prompts, num_generations=4, max_completion_length=4)
    completion_logprobs(policy, prompts, GROUPS, tokens, MASK)
    hook.remove()
    assert looked == [3, 3]


def test_a_group_costs_one_prompt_and_its_responses():
    policy = make("llama")
    prompts, tokens = make_prompts(policy, lengths=(20,)), make_responses()
    groups, mask = torch.zeros(7, dtype=torch.int64), torch.ones_like(MASK)
    arguments = (policy, prompts, groups, tokens, mask)
    completion_logprobs(*arguments)
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
    policy = make("llama")
    prompts = make_prompts(policy, lengths=(2,))
    tokens = torch.full((4, 120), 20)
    arguments = (policy, prompts, torch.zeros(4, dtype=torch.int64), tokens, tokens > 0)
    monkeypatch.setattr("g2rpo_torch.trainer.passes.forward.packed_predictions", None)
    found, _ = completion_logprobs(*arguments)
    assert torch.equal(found, plain_predictions(*arguments).values()[0])


def test_nothing_but_empty_responses():
    policy = make("llama")
    prompts = make_prompts(policy)
    logprobs, entropies = completion_logprobs(
        policy, prompts, GROUPS, make_responses(), torch.zeros_like(MASK)
    )
    assert logprobs.shape == entropies.shape == MASK.shape
    (logprobs * torch.zeros_like(logprobs)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.model.parameters())


def test_sixteen_bits_are_shared_too(caplog):
    policy = make("llama", dtype=torch.bfloat16)
    prompts = make_prompts(policy)
    sample(policy, prompts, num_generations=2, max_completion_length=4)
    completion_logprobs(policy, prompts, GROUPS, make_responses(), MASK)
    assert not own_lines(caplog)


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


def run_both_parts(policy, prompts):
    torch.manual_seed(6)
    completions = sample(policy, prompts, num_generations=2, max_completion_length=4)
    with torch.no_grad():
        passed = completion_logprobs(policy, prompts, GROUPS, make_responses(), MASK)
    return completions, passed


def own_lines(caplog):
    return [record.getMessage() for record in caplog.records if "g2rpo" in record.name]


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
    for place in ("rollout.sampling.expanded_prompts", "passes.forward.packed_predictions"):
        monkeypatch.setattr(f"g2rpo_torch.trainer.{place}", None)
    train(plain)
    for ours, expected in zip(metrics_of(shared), metrics_of(plain), strict=True):
        for name, value in expected.items():
            if "time" not in name and value is not None:
                assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def metrics_of(description):
    lines = (Path(description.output.dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
