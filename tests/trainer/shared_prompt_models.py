"""Tiny random policies of many architectures, prompts for them, and responses in uneven groups."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import torch
import transformers

from g2rpo_trainer.logprobs import packed_predictions, plain_predictions
from g2rpo_trainer.model.policy_model import Shortcuts, make_policy
from g2rpo_trainer.policy.build import build_tokenizer
from g2rpo_trainer.prompts.batching import Prompts, select_rows

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
    "gemma": transformers.GemmaConfig(**TEXT, head_dim=8),
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
    "olmo2": transformers.Olmo2Config(**TEXT),
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


def with_shared_prompts(policy, *, rollouts=True):
    """Return a policy that computes a prompt once for all of its responses."""
    return replace(policy, shortcuts=Shortcuts(shared_rollouts=rollouts, packed_rows=True))


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


def make_one_prompt(policy):
    """Return a prompt for the check at the start of a run, with images if the model takes them."""
    return select_rows(make_prompts(policy), slice(0, 1))


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


def own_lines(caplog):
    """Return what this library has logged."""
    return [
        record.getMessage()
        for record in caplog.records
        if "g2rpo" in record.name and record.levelname != "INFO"
    ]
