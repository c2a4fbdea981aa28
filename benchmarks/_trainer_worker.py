"""One measurement of ``benchmarks/trainer.py``, in a separate process."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from _logprobs_worker import PeakMemory

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

VOCABULARY = 4096
GENERATIONS = 8
WORDS = ("read", "top", "green", "circle", "square", "axis", "value", "text", "red", "bar")


class Setting(NamedTuple):
    """Size of a measurement in tokens, prompts and steps, and its device."""

    prompt: int
    response: int
    prompts: int
    hidden: int
    layers: int
    steps: int
    dtype: str
    device: str


class Measured(NamedTuple):
    """Seconds of each step, bytes beyond those before the first, and tokens per response."""

    seconds: list[float]
    extra: int
    length: float


def save_model(folder: Path, setting: Setting) -> None:
    """Write a random Llama with the tokenizer of the built-in policy."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from g2rpo_trainer.policy.build import build_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=setting.hidden,
        intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.hidden // 64,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = build_tokenizer()
    # A template that only joins the parts, so that the length of a prompt is known.
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
        "{% endfor %}"
    )
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)


def questions(tokenizer: Any, setting: Setting) -> list[str]:
    """Return different questions whose prompts have ``setting.prompt`` tokens."""
    from g2rpo_trainer.record import FORMAT_INSTRUCTION

    draw = random.Random(0)
    words = setting.prompt - len(tokenizer(FORMAT_INSTRUCTION)["input_ids"])
    found = [" " + " ".join(draw.choices(WORDS, k=words)) for _ in range(32)]
    lengths = {len(tokenizer(FORMAT_INSTRUCTION + text)["input_ids"]) for text in found}
    assert lengths == {setting.prompt}, lengths
    return found


def rewards_of(texts: list[str]) -> list[float]:
    """Return rewards that take no time and differ within a group."""
    return [float(len(text) % 2) for text in texts]


def ours(folder: Path, setting: Setting, shared_prompts: str) -> Measured:
    """Measure the steps of this project's trainer, run by its loop."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    from g2rpo_trainer.advantages import Shaping, shaping_options
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.data import open_run
    from g2rpo_trainer.model.loading import load_run_policy
    from g2rpo_trainer.optimizer import make_optimizer
    from g2rpo_trainer.progress import Progress
    from g2rpo_trainer.rollouts import Collector
    from g2rpo_trainer.sampling import sample_with_policy
    from g2rpo_trainer.scoring import Rewards
    from g2rpo_trainer.shortcuts import choose_shortcuts
    from g2rpo_trainer.step import training_step
    from g2rpo_trainer.update import Learner

    data = folder / "data.jsonl"
    texts = questions(AutoTokenizer.from_pretrained(folder), setting)
    rows = [{"problem": text, "answer": number} for number, text in enumerate(texts)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    config = load_config(
        settings=[
            f"model.name={folder}",
            f"model.device={setting.device}",
            f"model.dtype={setting.dtype}",
            f"data.source={data}",
            "data.problem_type=numerical",
            f"rollout.prompts_per_step={setting.prompts}",
            f"rollout.num_generations={GENERATIONS}",
            f"rollout.max_completion_length={setting.response}",
            f"rollout.shared_prompts={shared_prompts}",
            "length.mode=off",
            "optimization.micro_batch_tokens=1000000",
            "optimization.learning_rate=1e-6",
        ]
    )
    source = open_run(config)
    policy = choose_shortcuts(load_run_policy(config))
    ends = torch.tensor(policy.eos_ids, device=policy.device)
    policy = replace(policy, banned_ids=torch.cat([policy.banned_ids, ends]))
    optimizer = make_optimizer(policy, config.optimization)
    shaping, progress = Shaping(shaping_options(config, source.tasks)), Progress()
    learner = Learner(policy, optimizer, shaping, config.optimization, config.rollout)
    seconds, lengths = [], []

    class Scorer:
        def __call__(self, records: Any, texts: list[str]) -> Rewards:
            return Rewards(*[np.asarray(rewards_of(texts), np.float32)] * 4)

        def metrics(self) -> dict[str, float]:
            return {}

    scorer: Any = Scorer()
    collector = Collector(policy, sample_with_policy, scorer, source, config.rollout)
    with PeakMemory(setting.device) as memory:
        for _ in range(setting.steps):
            started = time.perf_counter()
            result = training_step(collector, learner, config.output, progress)
            seconds.append(time.perf_counter() - started)
            lengths.append(result.metrics["completions/mean_length"])
    return Measured(seconds, memory.extra, sum(lengths) / len(lengths))


def trl(folder: Path, setting: Setting) -> Measured:
    """Measure the steps of TRL's trainer with the same prompts, batch and model."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from g2rpo_trainer.record import FORMAT_INSTRUCTION

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ticks: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ticks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ticks.append(time.perf_counter())

    def reward(completions: list[str], **_: Any) -> list[float]:
        return rewards_of(completions)

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [FORMAT_INSTRUCTION + text for text in questions(tokenizer, setting)]
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=setting.prompts * GENERATIONS,
        num_generations=GENERATIONS,
        max_completion_length=setting.response,
        # All responses have the same length, as in this project's trainer.
        generation_kwargs={"min_new_tokens": setting.response},
        max_steps=setting.steps,
        learning_rate=1e-6,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=setting.device == "cpu",
        model_init_kwargs={"dtype": setting.dtype},
    )
    clock = Clock()
    trainer = GRPOTrainer(
        model=str(folder),
        reward_funcs=[reward],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    with PeakMemory(setting.device) as memory:
        trainer.train()
    seconds = [after - before for before, after in zip(clock.ticks, clock.ticks[1:], strict=False)]
    lengths = [
        line["completions/mean_length"]
        for line in trainer.state.log_history
        if "completions/mean_length" in line
    ]
    return Measured(seconds, memory.extra, sum(lengths) / len(lengths))


#: Trainers, with their names in the table.
CONTENDERS = {
    "ours": lambda folder, setting: ours(folder, setting, "auto"),
    "ours, prompts not shared": lambda folder, setting: ours(folder, setting, "off"),
    "TRL": trl,
}


def main(name: str, text: str) -> None:
    """Measure, and print a line of JSON."""
    setting = Setting(*json.loads(text))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(folder, setting)
        measured = CONTENDERS[name](folder, setting)
    assert measured.length == setting.response, f"{measured.length} tokens a response"
    # The first step includes the import of libraries and the compilation of kernels.
    first, *others = measured.seconds
    print(json.dumps({"seconds": median(others), "first": first, "extra": measured.extra}))


if __name__ == "__main__":
    main(*sys.argv[1:])
