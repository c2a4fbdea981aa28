"""Time and memory of log-probabilities with exact entropies, forward and backward.

    python benchmarks/logprobs.py --output benchmarks/results/logprobs.md
    python benchmarks/logprobs.py --vocabulary 151936 --hidden 896 --tokens 1024
    python benchmarks/logprobs.py --device cuda --dtype bfloat16
    python benchmarks/logprobs.py --quick

Every implementation gets the same random hidden states and weight, and the same loss: the core's,
with policy and entropy terms, such that every token has a gradient by both outputs. Liger
computes no entropy: its loss is the policy term alone. On a GPU g2rpo is measured with both
backends, PyTorch's operations and Triton kernels. Each measurement is a separate process:
the time is the best of its passes, the memory the peak of the first beyond inputs and
gradients. Measurements in the results file are not repeated; one that does not fit into memory,
or needs a package that is not installed, is skipped with a message.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from _logprobs_worker import CONTENDERS, ON_A_GPU, Setting, needed_bytes
from _report import markdown_table, measured_on, publish

PACKAGES = ("torch", "trl", "liger-kernel", "verl")
BASE = "trl"


def main() -> None:
    """Run the missing measurements, and write one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--hidden", type=int, nargs="+", default=[896, 2048])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16_384])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="all by default")
    parser.add_argument("--repeats", type=int, default=2, help="passes of each measurement")
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--memory", type=float, default=0.0, help="GiB to use; all by default")
    parser.add_argument("--results", type=Path, default=Path("runs/logprobs.jsonl"))
    parser.add_argument("--output", type=Path, help="where the table of all results goes")
    parser.add_argument("--report-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.vocabulary, arguments.hidden, arguments.tokens = [4096], [64], [256]
    on_device = [name for name in CONTENDERS if arguments.device == "cuda" or name not in ON_A_GPU]
    results = read(arguments.results)
    sizes = product(arguments.vocabulary, arguments.hidden, arguments.tokens)
    for entries, width, tokens in () if arguments.report_only else sizes:
        setting = Setting(entries, width, tokens, arguments.dtype, arguments.device)
        for name in arguments.contenders or on_device:
            if not any(r["name"] == name and r["setting"] == list(setting) for r in results):
                result = measure(name, setting, arguments.repeats, arguments.memory)
                if result:
                    results.append(result)
                    arguments.results.parent.mkdir(parents=True, exist_ok=True)
                    with arguments.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result) + "\n")
    text = report(results, arguments.device)
    publish(text, arguments.output)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the measurements of earlier runs."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measure(name: str, setting: Setting, repeats: int, memory: float) -> dict[str, Any] | None:
    """Return one measurement from a separate process; None if it is not possible."""
    needed, available = needed_bytes(name, setting), memory * 2**30 or available_bytes(setting)
    if needed > available:
        print(
            f"skipped {name} at {setting}: needs about {needed / 2**30:.0f} GiB, "
            f"{available / 2**30:.0f} are there"
        )
        return None
    worker = Path(__file__).with_name("_logprobs_worker.py")
    command = [sys.executable, str(worker), name, *map(str, setting), str(repeats)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        reason = finished.stderr.strip().splitlines()[-1:] or ["killed"]
        print(f"skipped {name} at {setting}: {reason[0]}")
        return None
    measured: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    seconds, extra = measured["seconds"], measured["extra"] / 2**20
    print(f"{name} at {setting}: {seconds:.2f} s, {extra:.0f} MiB", flush=True)
    return {"name": name, "setting": list(setting), **measured}


def available_bytes(setting: Setting) -> float:
    """Return the free memory of the device."""
    if setting.device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))


def report(results: list[dict[str, Any]], device: str) -> str:
    """Return the measurements of a device as Markdown, in the order of their sizes."""
    mine = [r for r in results if r["setting"][4] == device]
    settings = sorted({tuple(r["setting"]) for r in mine}, key=lambda s: (s[3] != "float32", s))
    rows = []
    for setting in settings:
        of = {r["name"]: r for r in mine if tuple(r["setting"]) == setting}
        base = of[BASE]["seconds"] if BASE in of else None
        entries, width, tokens, dtype, _ = setting
        for name in (name for name in CONTENDERS if name in of):
            each = of[name]
            rows.append(
                [
                    CONTENDERS[name],
                    dtype,
                    f"{entries:,}",
                    f"{width:,}",
                    f"{tokens:,}",
                    f"{each['seconds']:.3g}",
                    f"{each['seconds'] / base:.2f}" if base else "",
                    f"{each['extra'] / 2**20:,.0f}",
                    f"{each['extra'] / (4 * tokens * entries):.2f}",
                ]
            )
    header = ["contender", "dtype", "vocabulary", "hidden", "tokens", "seconds"]
    header += ["× TRL's", "extra MiB", "of logits"]
    parts = [
        "# Log-probabilities with exact entropies",
        f"{measured_on(device, PACKAGES)} By `python benchmarks/logprobs.py`.",
        "Forward and backward pass; memory beyond inputs and gradients, and as a share of the "
        "float32 logits. Gradients by hidden states and weight. "
        "Liger's log-probabilities come without entropies.",
        markdown_table(header, rows),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
