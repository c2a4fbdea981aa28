"""A tiny Qwen2.5-VL learns from prompts with images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image

from g2rpo_trl import G2RPOTrainer

from .tiny import GROUP, TASKS, byte_tokenizer, config, logs, table

SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def build_processor():
    tokenizer = byte_tokenizer(SPECIAL, "<|vision_start|><|image_pad|><|vision_end|>")

    class Processor(transformers.Qwen2_5_VLProcessor):
        """Without the part for videos, which needs torchvision."""

        @classmethod
        def get_attributes(cls):
            return ["image_processor", "tokenizer"]

        def __init__(self, image_processor=None, tokenizer=None, **options):
            super().__init__(image_processor, tokenizer, None, **options)

    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )
    return Processor(images, tokenizer, chat_template=tokenizer.chat_template)


def build_model(tokenizer):
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 8,
        "out_hidden_size": 32,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    torch.manual_seed(0)
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
        )
    )


def image(seed):
    values = np.random.default_rng(seed).integers(0, 256, (16, 16 + 16 * (seed % 2), 3))
    return Image.fromarray(values.astype(np.uint8))


def variety(completions, log_extra, task_type, **_):
    log_extra("task", list(task_type))
    return [float(len(set(messages[0]["content"]))) for messages in completions]


@pytest.mark.parametrize("parts", [1, 2])
def test_images_of_the_tasks_train_the_vision_tower(tmp_path, parts):
    processor = build_processor()
    records = [
        {
            "prompt": [{"role": "user", "content": f"{task}?"}],
            "images": [image(seed) for seed in range(1 + number % 2)],
            "task_type": task,
        }
        for number, task in enumerate(TASKS)
    ]
    model = build_model(processor.tokenizer)
    before = model.model.visual.merger.mlp[0].weight.detach().clone()
    made = G2RPOTrainer(
        model,
        variety,
        config(
            tmp_path,
            per_device_train_batch_size=12 // parts,
            gradient_accumulation_steps=parts,
            max_steps=3,
            length_targets={task: [0, 1, 4, 9] for task in TASKS},
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=processor,
    )
    made.train()
    assert not torch.equal(before, model.model.visual.merger.mlp[0].weight)
    for entry in logs(made):
        assert {f"reward/{task}" for task in TASKS} < entry.keys()
        assert entry["loss/entropy"] > 0
        assert np.isfinite(entry["grad_norm"])
    shown = table(tmp_path, 3)
    sums = shown["advantage"].to_numpy().reshape(-1, GROUP).sum(axis=1)
    np.testing.assert_allclose(sums, 0, atol=1e-5)
    assert sorted(set(shown["task"])) == sorted(TASKS)
