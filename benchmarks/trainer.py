"""Time and memory of whole training steps, compared with TRL's GRPOTrainer.

    python benchmarks/trainer.py --output benchmarks/results/trainer.md
    python benchmarks/trainer.py --prompt 512 --output benchmarks/results/trainer.md
    python benchmarks/trainer.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16

A step samples 8 responses of exactly R tokens to each prompt of P tokens with transformers'
generation, scores them, and takes one AdamW update on all of them; the seconds are the median of
the steps after the first, the memory the peak beyond that before the first. Both trainers
get the same random Llama, the same texts and the same batch. This trainer also computes exact
entropies with a gradient, TRL without. Each measurement is a separate process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from _report import earlier_rows, markdown_table, measured_on, publish
from _trainer_worker import CONTENDERS, GENERATIONS, VOCABULARY, Setting

PACKAGES = ["torch", "transformers", "trl"]
HEADER = ["P", "R", "trainer", "s a step", "samples/s", "against TRL", "memory [MiB]"]


def main() -> None:
    """Measure, print, and write."""
    options = _options()
    blocks = []
    for prompt in options.prompt:
        setting = Setting(
            prompt,
            options.response,
            options.prompts,
            options.hidden,
            options.layers,
            options.steps,
            options.dtype,
            options.device,
        )
        results = {name: _measure(name, setting) for name in CONTENDERS}
        blocks += _rows(setting, results)
        print("\n".join(" ".join(row) for row in blocks[-len(CONTENDERS) :]), flush=True)
    text = _report(blocks, options)
    publish(text, options.output)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, nargs="+", default=[512, 1024], help="tokens")
    parser.add_argument("--response", type=int, default=32, help="tokens")
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="the first does not count")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    return parser.parse_args()


def _measure(name: str, setting: Setting) -> dict[str, float]:
    worker = Path(__file__).with_name("_trainer_worker.py")
    command = [sys.executable, str(worker), name, json.dumps(setting)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _rows(setting: Setting, results: dict[str, dict[str, float]]) -> list[list[str]]:
    samples = setting.prompts * GENERATIONS
    return [
        [
            str(setting.prompt),
            str(setting.response),
            name,
            f"{result['seconds']:.2f}",
            f"{samples / result['seconds']:.1f}",
            f"{results['TRL']['seconds'] / result['seconds']:.2f}",
            f"{result['extra'] / 2**20:.0f}",
        ]
        for name, result in results.items()
    ]


def _report(rows: list[list[str]], options: argparse.Namespace) -> str:
    """Return the table, including rows of the same day and settings from earlier calls."""
    conditions = (
        f"{measured_on(options.device, PACKAGES)} {options.prompts} prompts of P tokens a step "
        f"with {GENERATIONS} responses of R tokens each; {options.dtype}, hidden size "
        f"{options.hidden}, {options.layers} layers, vocabulary {VOCABULARY}; the median of "
        f"{options.steps - 1} steps after the first."
    )
    earlier = earlier_rows(options.output, conditions)
    known = [each for each in earlier if len(each) == len(HEADER) and each[2] in CONTENDERS]
    table = {tuple(cells[:3]): cells for cells in known}
    table |= {tuple(cells[:3]): cells for cells in rows}
    names = list(CONTENDERS)
    cells = sorted(table.values(), key=lambda c: (int(c[0]), int(c[1]), names.index(c[2])))
    return "\n\n".join(["# Training steps", conditions, markdown_table(HEADER, cells)]) + "\n"


if __name__ == "__main__":
    main()
