"""Models of known sizes, of which there are configurations and no weights."""

from __future__ import annotations

import torch
import transformers

from g2rpo_trainer.config import Lora, Model, load_config
from g2rpo_trainer.device_fit import DeviceMemory
from g2rpo_trainer.model.adapting import attach_empty_adapter
from g2rpo_trainer.model_shape import model_shape
from g2rpo_trainer.step_time import GPUS

SIZES = {
    # Hidden size, inner width, layers, heads, heads of keys and values, tied.
    "1.7B": (2048, 6144, 28, 16, 8, True),
    "2.5B": (2304, 8192, 32, 18, 6, True),
    "4B": (2560, 9728, 36, 32, 8, True),
    "8B": (4096, 12288, 36, 32, 8, False),
    "14B": (5120, 17408, 40, 40, 8, False),
    "32B": (5120, 25600, 64, 64, 8, False),
}
H100 = DeviceMemory("H100", GPUS["H100"].memory, GPUS["H100"].memory)


def text_config(size):
    hidden, inner, layers, heads, kv_heads, is_tied = SIZES[size]
    return transformers.Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=is_tied,
    )


def shape_of(size, rank=0):
    with torch.device("meta"):
        auto = transformers.AutoModelForCausalLM
        model = auto.from_config(text_config(size), dtype=torch.bfloat16)
        if rank:
            attach_empty_adapter(model, Model(lora=Lora(rank=rank)), None)
    return model_shape(model)


def run_of(size, **overrides):
    """Return a run on prompts and responses of 1,024 tokens."""
    options = {"model.name": size, "model.gradient_checkpointing": True, **overrides}
    return load_config("text", {"rollout.batch_size": 32, **options})
