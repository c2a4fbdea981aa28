"""Run the built-in training for several seeds and estimators, and write one table.

    python benchmarks/builtin.py --output benchmarks/results/builtin.md

Runs follow one another, each in a process of its own with the whole machine, as a user would start
them. A run that is finished already is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any


def main() -> None:
    """Run, collect, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--estimators", nargs="+", default=["gaussian", "grpo"])
    parser.add_argument("--runs", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/builtin.md"))
    arguments = parser.parse_args()
    summaries = [
        run(arguments.runs / f"{estimator}-{seed}", estimator, seed)
        for seed in arguments.seeds
        for estimator in arguments.estimators
    ]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(report(summaries), encoding="utf-8")
    print(arguments.output.read_text(encoding="utf-8"))


def run(folder: Path, estimator: str, seed: int) -> dict[str, Any]:
    """Return the summary of one run; train it if there is none."""
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "g2rpo_cli", "train", "--estimator", estimator]
        command += ["--seed", str(seed), "--output-dir", str(folder)]
        subprocess.run(command, check=True)
    content: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return content


def report(summaries: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: rewards, then lengths, one row a run."""
    tasks = list(summaries[0]["after"])
    sections = [
        "# The built-in run",
        f"Measured on {date.today()} on {os.cpu_count()} cores ({platform.machine()}), "
        "by `python benchmarks/builtin.py`. Held-out items, sampled at temperature 1; the items "
        "are the same in every run, before and after.",
        "## Reward",
        f"Before training: {_row(summaries[0]['before'], tasks)}",
        _table(
            ["estimator", "seed", *tasks, "change", "steps", "seconds"],
            [
                [
                    each["estimator"],
                    str(each["seed"]),
                    *(f"{each['after'][task]:.3f}" for task in tasks),
                    f"{each['after']['mean'] - each['before']['mean']:+.3f}",
                    str(each["steps"]),
                    f"{each['seconds']:.0f}",
                ]
                for each in summaries
            ],
        ),
        "## Change of each task",
        _table(
            ["estimator", "seed", *tasks],
            [
                [
                    each["estimator"],
                    str(each["seed"]),
                    *(f"{each['after'][task] - each['before'][task]:+.3f}" for task in tasks),
                ]
                for each in summaries
            ],
        ),
        "## Mean response length in tokens",
        _table(
            ["estimator", "seed", *tasks[:-1]],
            [
                [
                    each["estimator"],
                    str(each["seed"]),
                    *(
                        f"{each['length_before'][task]:.1f} → {each['length_after'][task]:.1f}"
                        for task in tasks[:-1]
                    ),
                ]
                for each in summaries
            ],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _row(values: dict[str, float], tasks: list[str]) -> str:
    return ", ".join(f"{task} {values[task]:.3f}" for task in tasks) + "."


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
