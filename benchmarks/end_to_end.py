"""Train on the built-in tasks in bfloat16: the built-in policy, and a pretrained model.

    python benchmarks/end_to_end.py --device cuda --output benchmarks/results/end_to_end.md

Rewards of each task before and after, seconds of a step by its parts, and peak memory. Each run is
a process of its own; one that is finished already is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _report import markdown_table, measured_on

PARTS = ("rollout", "scoring", "update")

# Settings for a pretrained model: longer completions, targets that
# follow from what it does, and small changes.
PRETRAINED = {
    "rollout.max_completion_length": 256,
    "rollout.prompts_per_step": 32,
    "length.targets": {
        "grounding": "direct",
        "ocr": "direct",
        "vqa": "reasoning",
        "spatial": "reasoning",
        "chart": "reasoning",
        "maths": "reasoning",
    },
    "length.weight": 0.1,
    "length.calibrate": True,
    "entropy.low": 0.2,
    "optimization.learning_rate": 2e-6,
    "optimization.schedule": "constant",
    "model.gradient_checkpointing": True,
    "optimization.micro_batch_tokens": 16384,
}


def main() -> None:
    """Run each model, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["builtin", "HuggingFaceTB/SmolVLM-256M-Instruct"]
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, help="default: 280, and 100 of a pretrained model")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--runs", type=Path, default=Path("runs/end_to_end"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/end_to_end.md"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        train(arguments)
        return
    folders = [run(model, arguments) for model in arguments.models]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(report(folders), encoding="utf-8")
    print(arguments.output.read_text(encoding="utf-8"))


def run(model: str, arguments: argparse.Namespace) -> Path:
    """Train a model in a separate process, unless it is done; return its folder."""
    folder: Path = arguments.runs / model.replace("/", "--")
    if not (folder / "memory.json").exists():
        command = [sys.executable, __file__, "--one", "--models", model, "--runs", str(folder)]
        command += ["--device", arguments.device, "--dtype", arguments.dtype]
        command += [] if arguments.steps is None else ["--steps", str(arguments.steps)]
        subprocess.run([*command, "--set", *arguments.settings], check=True)
    return folder


def train(arguments: argparse.Namespace) -> None:
    """Train one model, and record its peak memory."""
    from transformers.utils.logging import disable_progress_bar

    from g2rpo_trainer import train as run_training
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.report.display import Display

    disable_progress_bar()  # they would break the lines of ours
    (model,) = arguments.models
    changes: dict[str, Any] = {} if model == "builtin" else dict(PRETRAINED)
    steps = arguments.steps or (280 if model == "builtin" else 100)
    changes |= {
        "model.name": model,
        "model.device": arguments.device,
        "model.dtype": arguments.dtype,
        "optimization.steps": steps,
        "output.dir": str(arguments.runs),
    }
    config = load_config(overrides=changes, settings=arguments.settings)
    with Display(steps, config.data.tasks) as display:
        run_training(config, display=display)
    text = json.dumps(peak_memory(arguments.device))
    (arguments.runs / "memory.json").write_text(text, encoding="utf-8")


def peak_memory(device: str) -> dict[str, Any]:
    """Return the device of this process, and its peak memory there, in MiB."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        name = "cuda" if device == "auto" else device
        return {"device": name, "peak": torch.cuda.max_memory_allocated(name) / 2**20}
    import resource

    return {"device": "cpu", "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def report(folders: list[Path]) -> str:
    """Return the results as Markdown: rewards for each model, then time and memory."""
    summaries = [_read(folder / "summary.json") for folder in folders]
    memories = [_read(folder / "memory.json") for folder in folders]
    parts = [
        "# Training from end to end",
        measured_on(memories[0]["device"], ["torch", "transformers"])
        + " By `python benchmarks/end_to_end.py`: `g2rpo train` on the built-in tasks; held-out "
        "items, sampled at temperature 1.",
    ]
    for folder, summary in zip(folders, summaries, strict=True):
        parts.append(f"## {folder.name}: {summary['steps']} steps in {summary['seconds']:.0f} s")
        rows = [_rewards(task, summary) for task in summary["after"]]
        parts.append(markdown_table(["task", "before", "after", "change", "length"], rows))
    header = ["model", *(f"{part} [s/step]" for part in PARTS), "step [s]", "peak memory [MiB]"]
    rows = [
        [folder.name, *_times(folder), f"{memory['peak']:.0f}"]
        for folder, memory in zip(folders, memories, strict=True)
    ]
    parts += ["## Time and memory", markdown_table(header, rows)]
    return "\n\n".join(parts) + "\n"


def _rewards(task: str, summary: dict[str, Any]) -> list[str]:
    before, after = summary["before"][task], summary["after"][task]
    lengths = [summary[f"length_{when}"].get(task) for when in ("before", "after")]
    length = "" if None in lengths else " → ".join(f"{each:.1f}" for each in lengths)
    return [task, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}", length]


def _times(folder: Path) -> list[str]:
    """Return mean seconds of a step and its parts, without the first step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines][1:]
    names = [*(f"time/{part}" for part in PARTS), "step_time"]
    return [f"{sum(step[name] for step in steps) / len(steps):.2f}" for name in names]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main()
