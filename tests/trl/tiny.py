"""A tiny random model, three tasks on letters, and TRL's trainer around them, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from g2rpo_trl import G2RPOConfig, G2RPOTrainer

LETTERS = "abcdefghijklmnop"
TASKS = ("count", "first", "tail")
GROUP = 4


def save_chat_model(folder: Path) -> Path:
    """Write a random model and its tokenizer of bytes, as they would come from the hub."""
    made = byte_tokenizer()
    save_model(folder, std=0.02, vocabulary=len(made))
    made.save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one with a token a letter."""
    pieces = {piece: number for number, piece in enumerate(["<pad>", "<eos>", *LETTERS])}
    core = Tokenizer(models.WordLevel(pieces, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def save_model(folder: Path, *, std: float = 0.3, vocabulary: int = 2 + len(LETTERS)) -> Path:
    """Write a random model that prefers some letters, and return its folder."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    model.save_pretrained(folder)
    return folder


def byte_tokenizer(special: Sequence[str] = (), image: str = "") -> PreTrainedTokenizerFast:
    """Return one with a token a byte and a chat template; ``image`` stands for an image in it."""
    pieces = ["<pad>", "<eos>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=list(special),
        padding_side="left",
    )
    made.chat_template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}{% if part.type == 'image' %}"
        + image
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )
    return made


def rows(number: int = 12, **columns: Any) -> Dataset:
    each = [
        {"prompt": LETTERS[i % 12 :][:3], "task_type": TASKS[i % 3], "number": i}
        for i in range(number)
    ]
    return Dataset.from_list([{**row, **columns} for row in each])


def vowels(completions, completion_ids, number, log_extra=None, **_):
    """Score the vowels of a completion; log what tests compare with."""
    if log_extra is not None:
        log_extra("tokens", [len(ids) for ids in completion_ids])
        log_extra("number", list(number))
    return [sum(letter in "aeio" for letter in text) / 4 for text in completions]


def early(completions, task_type, **_):
    """Score the first letter, and nothing in the task ``tail``."""
    return [
        None if task == "tail" else float(text[:1] < "h")
        for text, task in zip(completions, task_type, strict=True)
    ]


def config(folder: Path, **options: Any) -> G2RPOConfig:
    defaults = {
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": None,
        "per_device_train_batch_size": 24,
        "num_generations": GROUP,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "log_completions": True,
        "num_completions_to_print": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
    }
    return G2RPOConfig(str(folder), **(defaults | options))


def trainer(folder: Path, model: Any = None, **options: Any) -> G2RPOTrainer:
    """Return a trainer in a folder; keywords that TRL's configuration lacks are the trainer's."""
    fields = G2RPOConfig.__dataclass_fields__
    named = {name: options.pop(name) for name in [*options] if name not in fields}
    return G2RPOTrainer(
        str(save_model(folder / "model")) if model is None else model,
        named.pop("reward_funcs", [vowels, early]),
        config(folder, **options),
        train_dataset=named.pop("train_dataset", rows()),
        processing_class=tokenizer(),
        **named,
    )


def table(folder: Path, step: int) -> pd.DataFrame:
    """Return TRL's table of the completions of a step."""
    return pd.read_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


def logs(trained: G2RPOTrainer) -> list[dict[str, float]]:
    """Return what was logged of each step."""
    return [entry for entry in trained.state.log_history if "loss" in entry]
