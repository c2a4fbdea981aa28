"""The parts of ``gpu.py``: each returns what its line of JSON says."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _gpu_kernels import adamw, advantages, attention, head
from _gpu_models import blocks, compiled, decoding, ratios, update
from _gpu_tools import GIGABYTE, Sizes, waits


def versions(sizes: Sizes) -> dict[str, Any]:
    """Name versions and the device."""
    found = {}
    for name in ("torch", "transformers", "triton", "trl", "vllm", "flash-attn", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    device: dict[str, Any] = {"python": sys.version.split()[0], "device": sizes.device}
    if sizes.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        device["device"] = properties.name
        device["capability"] = list(torch.cuda.get_device_capability())
        device["memory"] = round(properties.total_memory / GIGABYTE, 1)
    return {**device, **found}


def tests(sizes: Sizes) -> dict[str, Any]:
    """Run the tests that need a GPU."""
    folders = ["tests/torch", "tests/trainer/test_on_gpu.py"]
    if sizes.device == "cpu":
        folders = folders[1:]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or ["nothing"]
    failed = [line for line in lines if line.startswith("FAILED")]
    return {"code": done.returncode, "result": lines[-1], "failed": failed[:10]}


def _train(folder: Path, sizes: Sizes, steps: int, *settings: str, **options: Any) -> Any:
    from rich.console import Console

    from g2rpo_trainer import train
    from g2rpo_trainer.config import load_config
    from g2rpo_trainer.report.display import Display

    few = ("data.eval_items=2", "data.eval_generations=1") if steps <= 3 else ()
    config = load_config(
        "builtin",
        settings=[
            f"model.device={sizes.device}",
            f"optimization.steps={steps}",
            "optimization.schedule=constant",
            "output.plots=false",
            "output.trackers=[]",
            f"output.dir={folder}",
            *few,
            *settings,
        ],
    )
    quiet = Display(steps, config.data.tasks, console=Console(quiet=True))
    return train(config, display=quiet, **options)


def repeats(sizes: Sizes) -> dict[str, Any]:
    """Train the built-in policy in bfloat16: three steps twice, and once resumed after two."""
    from safetensors.torch import load_file

    settings = ("model.dtype=bfloat16",)
    if sizes.device == "cpu":
        settings += ("rollout.prompts_per_step=2", "rollout.max_completion_length=8")
    found = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for deterministic in ("false", "true"):
            given = (*settings, f"model.deterministic={deterministic}")
            runs = [folder / f"{deterministic}-{number}" for number in range(3)]
            waited = waits(partial(_train, runs[0], sizes, 3, *given))
            started = time.monotonic()
            _train(runs[1], sizes, 3, *given)
            seconds = time.monotonic() - started
            _train(runs[2], sizes, 2, *given)
            _train(runs[2], sizes, 3, *given, resume=True)
            ends = [
                load_file(run / "checkpoints" / "step-000003" / "model.safetensors") for run in runs
            ]
            same = [all(torch.equal(ends[0][key], end[key]) for key in ends[0]) for end in ends[1:]]
            found["deterministic" if deterministic == "true" else "default"] = {
                "seconds_a_run": round(seconds, 1),
                "waits_a_run": waited,
                "repeats_to_the_bit": same[0],
                "resumes_to_the_bit": same[1],
            }
    return found


def builtin(sizes: Sizes) -> dict[str, Any]:
    """Train the built-in policy for thirty steps: rewards before and after."""
    few = ("data.eval_items=16",) if sizes.steps > 3 else ("rollout.prompts_per_step=2",)
    with TemporaryDirectory() as name:
        summary = _train(Path(name) / "run", sizes, sizes.steps, *few)
    kept = ("steps", "seconds", "before", "after")
    return {key: summary[key] for key in kept}


PARTS = {
    "versions": versions,
    "attention": attention,
    "tests": tests,
    "repeats": repeats,
    "ratios": ratios,
    "decoding": decoding,
    "compiled": compiled,
    "update": update,
    "blocks": blocks,
    "head": head,
    "adamw": adamw,
    "advantages": advantages,
    "builtin": builtin,
}
