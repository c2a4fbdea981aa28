"""Time of a training step of other trainers with and without the plug-in, on the same model.

    python benchmarks/plugins.py --output benchmarks/results/plugins.md
    python benchmarks/plugins.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16

TRL: short runs of `GRPOTrainer` and `G2RPOTrainer` alternate, in pairs, so that both have the same
load of the machine; the order changes from pair to pair. Both get the same random
Qwen3, the same prompts of three tasks and responses of exactly R tokens. `G2RPOTrainer` has its
estimator, entropy term, length term and metrics by task. Where a task's mean entropy is out of its
bounds, its entropies have a gradient, which is the dearest of what the subclass adds; TRL's own
entropy bonus pays for the same. So there are three comparisons: inside the bounds, outside, and
outside against TRL with its bonus. A run's time is the median of its steps after the first; the
result is the median ratio of a pair, with its quartiles.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from _report import markdown_table, measured_on, publish

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

TASKS = ("maths", "ocr", "vqa")
GENERATIONS = 8
HEADER = ["micro-batches", "entropies", "TRL", "TRL [s]", "ours [s]", "ours / TRL", "quartiles"]
# A random model of V tokens has an entropy of about log V nats.
INSIDE = {"entropy_low": 0.0, "entropy_high": 1e3}
OUTSIDE = {"entropy_low": 0.0, "entropy_high": 0.6}
# Of the entropies, and of TRL; the options of ours, and of TRL.
COMPARISONS: list[tuple[str, str, dict[str, float], dict[str, float]]] = [
    ("inside", "as it is", INSIDE, {}),
    ("outside", "as it is", OUTSIDE, {}),
    ("outside", "entropy bonus", OUTSIDE, {"entropy_coef": 1e-3}),
]


def main() -> None:
    """Measure, print, and write."""
    options = _options()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _save_model(folder, options)
        rows = [
            _pairs(folder, options, parts, *comparison)
            for parts in options.micro_batches
            for comparison in COMPARISONS
        ]
    conditions = (
        f"{measured_on(options.device, ['torch', 'transformers', 'trl'])} {options.prompts} "
        f"prompts of {options.prompt} tokens a step with {GENERATIONS} responses of "
        f"{options.response} tokens each; {options.dtype}, hidden size {options.hidden}, "
        f"{options.layers} layers; {options.pairs} pairs of runs of {options.steps} steps."
    )
    text = "\n\n".join(["# Plug-ins", conditions, markdown_table(HEADER, rows)]) + "\n"
    publish(text, options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens")
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4], help="of a step")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of a run; the first does not count")
    parser.add_argument("--pairs", type=int, default=8, help="runs of each trainer")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


def _save_model(folder: Path, options: argparse.Namespace) -> None:
    """Write a random Qwen3 and a tokenizer with one token per byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    pieces = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 128),
        head_dim=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


def _pairs(
    folder: Path,
    options: argparse.Namespace,
    parts: int,
    entropies: str,
    host: str,
    ours: dict[str, float],
    theirs: dict[str, float],
) -> list[str]:
    """Return a row of the table."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(options.pairs):
        for is_ours in (False, True) if pair % 2 else (True, False):
            given = ours if is_ours else theirs
            seconds[is_ours].append(_seconds(folder, options, parts, is_ours, given))
        print(f"{parts} {entropies} {host}: {seconds[False][-1]:.3f} {seconds[True][-1]:.3f}")
    ratios = [mine / trl for trl, mine in zip(seconds[False], seconds[True], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    medians = [f"{statistics.median(seconds[is_ours]):.3f}" for is_ours in (False, True)]
    return [str(parts), entropies, host, *medians, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]


def _seconds(
    folder: Path,
    options: argparse.Namespace,
    parts: int,
    is_ours: bool,
    given: dict[str, float],
) -> float:
    """Return the median time of a step of one run."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from g2rpo_trl import G2RPOConfig, G2RPOTrainer

    ticks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append(time.perf_counter())

    def parity(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text)) % 2) for text in completions]

    draw = random.Random(0)
    prompts = ["".join(draw.choices("abcdefgh ", k=options.prompt)) for _ in range(32)]
    tasks = [TASKS[number % len(TASKS)] for number in range(32)]
    common: dict[str, Any] = {
        "per_device_train_batch_size": options.prompts * GENERATIONS // parts,
        "gradient_accumulation_steps": parts,
        "num_generations": GENERATIONS,
        "max_completion_length": options.response,
        "generation_kwargs": {"min_new_tokens": options.response},
        "max_steps": options.steps,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "gradient_checkpointing": None,
        "bf16": False,
        "use_cpu": options.device == "cpu",
        "model_init_kwargs": {"dtype": options.dtype},
        **given,
    }
    if is_ours:
        targets = dict.fromkeys(TASKS, "reasoning")
        args = G2RPOConfig(str(folder / "out"), length_targets=targets, **common)
    else:
        args = GRPOConfig(str(folder / "out"), **common)
    trainer = (G2RPOTrainer if is_ours else GRPOTrainer)(
        str(folder),
        parity,
        args,
        train_dataset=Dataset.from_dict({"prompt": prompts, "task_type": tasks}),
        callbacks=[Clock()],
    )
    trainer.train()
    # The first step includes the import of libraries.
    return statistics.median(after - before for before, after in pairwise(ticks))


if __name__ == "__main__":
    main()
