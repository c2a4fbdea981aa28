"""Run the built-in training of the JAX engine, and write its table.

    python benchmarks/jax_run.py --output benchmarks/results/jax.md

A run that is finished already is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _report import markdown_table, measured_on


def main() -> None:
    """Run, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/jax"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/jax.md"))
    arguments = parser.parse_args()
    summaries = [run(arguments.runs / f"seed-{seed}", seed) for seed in arguments.seeds]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(report(summaries), encoding="utf-8")
    print(arguments.output.read_text(encoding="utf-8"))


def run(folder: Path, seed: int) -> dict[str, Any]:
    """Return the summary of one run, training it if it is not there."""
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "g2rpo_cli", "train", "--engine", "jax"]
        subprocess.run([*command, "--seed", str(seed), "-o", str(folder)], check=True)
    content: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return content


def report(summaries: list[dict[str, Any]]) -> str:
    """Return the results as Markdown, a table a seed."""
    parts = [
        "# The built-in run in JAX",
        measured_on(packages=["jax", "flax", "optax"])
        + " By `python benchmarks/jax_run.py`: `g2rpo train --engine jax`, held-out items, sampled "
        "at temperature 1; the items are the same before and after.",
    ]
    for summary in summaries:
        parts.append(
            f"## Seed {summary['seed']}: {summary['steps']} steps in {summary['seconds']:.0f} s"
        )
        parts.append(
            markdown_table(
                ["task", "before", "after", "change", "length before", "length after"],
                [_row(task, summary) for task in summary["after"]],
            )
        )
    return "\n\n".join(parts) + "\n"


def _row(task: str, summary: dict[str, Any]) -> list[str]:
    before, after = summary["before"][task], summary["after"][task]
    lengths = [summary[f"length_{when}"].get(task) for when in ("before", "after")]
    return [
        task,
        f"{before:.3f}",
        f"{after:.3f}",
        f"{after - before:+.3f}",
        *("" if length is None else f"{length:.1f}" for length in lengths),
    ]


if __name__ == "__main__":
    main()
