"""Adapters of one's own, and where there can be any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from g2rpo_trainer.model.adapting import peft_fault

from .tiny_models import build_processor

needs_lora = pytest.mark.skipif(peft_fault() is not None, reason=str(peft_fault()))

# Options of peft for adapters that can be trained on.
OWN = {
    "query": {},
    "output": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole output": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole norm": {"modules_to_save": ["norm"]},
    "rank": {"use_rslora": True},
    "tokens": {"trainable_token_indices": [40, 41]},
}


def tied_folder(folder: Path, copy: Path) -> Path:
    """Write a model again, with one weight for its embedding and its output layer."""
    from g2rpo_trainer.model.loading import load_policy

    policy = load_policy(str(folder), device="cpu")
    for config in (policy.model.config, policy.model.config.get_text_config()):
        config.tie_word_embeddings = True
    policy.model.tie_weights()
    policy.save(copy)
    return copy


def save_own_adapter(base: Path, folder: Path, **options: Any) -> None:
    """Write an adapter to a Llama as peft makes it, with weights that do something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **options})
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    build_processor("llama").save_pretrained(folder)
