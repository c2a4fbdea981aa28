"""Run the built-in training for several seeds and variants, and write tables with intervals.

    python benchmarks/builtin.py                                     # gaussian and grpo
    python benchmarks/builtin.py --list
    python benchmarks/builtin.py gaussian "mean by task" --seeds 0 1 2 3 4

A variant is a list of settings of ``g2rpo train``. Every run starts from the policy that comes with
the package, in a process of its own on one core. A run that is finished is read, not repeated, and
one that was broken off goes on from its last checkpoint. Differences are to the first variant,
paired by seed, with 95 % intervals by bootstrap over seeds. Choose settings on other seeds than
those that you report: the held-out items are the same in every run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _intervals import interval
from _report import markdown_table, measured_on

from g2rpo import ESTIMATORS
from g2rpo_trainer.config import load_config
from g2rpo_trainer.policy import policy_path

BY_TASK, FOLLOW = "optimization.aggregation=task", "task_weights.adapt=5"
LOSSES = ("grpo", "dapo", "dr-grpo", "gspo", "cispo", "sapo")

#: Steps whose mean rewards are recorded, to be found again by the first steps of another run.
RECORDED_STEPS = 4

#: Settings of each variant, by its name.
VARIANTS: dict[str, list[str]] = {
    **{name: [f"estimator.name={name}"] for name in ESTIMATORS},
    "no stage": ["estimator.task_stage=null"],
    "match": ["estimator.task_stage=match"],
    "match-all": ["estimator.task_stage=match-all"],
    "mean by task": [BY_TASK],
    "weights follow the norms": [FOLLOW],
    "mean by task, weights follow": [BY_TASK, FOLLOW],
    "grpo, mean by task": ["estimator.name=grpo", BY_TASK],
    "grpo, weights follow the norms": ["estimator.name=grpo", FOLLOW],
    "dynamic sampling": ["rollout.dynamic_sampling.mode=signal"],
    "length off": ["length.mode=off"],
    "length in the reward": ["length.mode=reward"],
    "length calibrated": ["length.calibrate=true"],
    "length without the gate": ["length.only_right=false"],
    "entropy off": ["entropy.weight=0"],
    "entropy adaptive": ["entropy.control=adaptive"],
    "decoupled": ["estimator.decoupled=true"],
    "barycentre": ["estimator.ties=barycentre"],
    "resolution .1": ["estimator.resolution=0.1"],
    "four updates": ["optimization.updates_per_batch=4"],
    **{
        f"four updates, {name}": [
            "optimization.updates_per_batch=4",
            f"optimization.loss_type={name}",
        ]
        for name in LOSSES
    },
}


def main() -> None:
    """Run, collect, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", default=["gaussian", "grpo"], help="see --list")
    parser.add_argument("--list", action="store_true", help="show the variants, and stop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every run")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/builtin.md"))
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {' '.join(of)}" for name, of in VARIANTS.items()))
        return
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        parser.error(f"no variant {', '.join(unknown)}; --list shows all")
    cells = [(name, seed) for seed in options.seeds for name in options.variants]
    with ThreadPoolExecutor(options.workers) as pool:
        runs = list(
            pool.map(
                lambda cell: run(options.runs, [*VARIANTS[cell[0]], *options.set], cell), cells
            )
        )
    found = {
        name: [each for cell, each in zip(cells, runs, strict=True) if cell[0] == name]
        for name in options.variants
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report(found, options), encoding="utf-8")
    record = options.output.with_suffix(".json")
    record.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))


def run(runs: Path, settings: Sequence[str], cell: tuple[str, int]) -> dict[str, Any]:
    """Return the summary of one run with its curve, training it if it is not there.

    Its folder is named by all of its configuration and by the policy that it starts from, so that
    no other run is ever read in its place.
    """
    name, seed = cell
    start = (policy_path() / "model.safetensors").read_bytes()
    start += load_config(settings=settings).model_dump_json().encode()
    digest = hashlib.sha256(start).hexdigest()[:8]
    folder = runs / f"{re.sub(r'[^a-z0-9]+', '-', name)}-{digest}-{seed}"
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "g2rpo_cli", "train", "--output-dir", str(folder)]
        if (folder / "config.yaml").exists():
            command.append("--resume")
        else:
            command += ["--seed", str(seed), "--device", "cpu"]
            command += [part for setting in settings for part in ("--set", setting)]
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        subprocess.run(command, check=True, env={**os.environ, **threads})
    content: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    rewards = [value for each in metrics if (value := _mean_reward(each, content)) is not None]
    return {
        **content,
        "variant": name,
        "settings": list(settings),
        "seed": seed,
        "area": float(np.mean(rewards)),
        "first_rewards": rewards[:RECORDED_STEPS],
        "lengths_inside": _lengths_inside(folder, content["length_after"]),
        "gradient_norms": {task: _mean_norm(metrics, task) for task in content["length_after"]},
    }


def _mean_norm(metrics: list[dict[str, Any]], task: str) -> float | None:
    """Return the mean norm of a task's own gradient over the steps that measured it, if any."""
    norms = [each.get(f"equity/grad_norm/{task}") for each in metrics]
    measured = [norm for norm in norms if norm is not None]
    return float(np.mean(measured)) if measured else None


def _lengths_inside(folder: Path, lengths: dict[str, float]) -> list[str]:
    """Return the tasks of a run whose mean length is inside of their target."""
    config = load_config(folder / "config.yaml")
    targets = {
        task: config.length.target_of(task, config.rollout.limit_of(task)) for task in lengths
    }
    return [
        task
        for task, mean in lengths.items()
        if (target := targets[task]) and target.low <= mean <= target.high
    ]


def _mean_reward(metrics: dict[str, Any], summary: dict[str, Any]) -> float | None:
    """Return the mean over tasks of a step's rewards, or None if it had none."""
    rewards = [metrics.get(f"reward/{task}") for task in summary["length_after"]]
    present = [reward for reward in rewards if reward is not None]
    return float(np.mean(present)) if present else None


def report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """Return the results as Markdown: differences, then each run's rewards and lengths."""
    base = next(iter(found.values()))
    tasks = list(base[0]["length_after"])
    of = {
        "mean": lambda each: each["after"]["mean"],
        "worst task": lambda each: min(each["after"][task] for task in tasks),
        "area": lambda each: each["area"],
        **{task: lambda each, task=task: each["after"][task] for task in tasks},
    }

    def column(name: str, runs: list[dict[str, Any]]) -> Any:
        return np.asarray([of[name](each) for each in runs])

    names = " ".join(f'"{name}"' if " " in name else name for name in found)
    seeds = " ".join(map(str, options.seeds))
    more = "".join(f" --set {setting}" for setting in options.set)
    flat = [(name, each) for name, runs in found.items() for each in runs]
    sections = [
        "# The built-in run",
        f"{measured_on(packages=['torch'])} By `python benchmarks/builtin.py {names} --seeds "
        f"{seeds}{more}`. Held-out items, sampled at temperature 1, the same in every run, before "
        "and after. *area*: mean reward of all training steps.",
        f"Before training: {_row(base[0]['before'], [*tasks, 'mean'])}",
        f"## Difference to {next(iter(found))}",
        "Paired by seed; in brackets the 95 % interval, by bootstrap over seeds, bold where all of "
        "it is on one side of 0.",
        markdown_table(
            ["variant", *of],
            [
                [name, *(str(interval(column(key, runs) - column(key, base))) for key in of)]
                for name, runs in found.items()
            ],
        ),
        "## Reward",
        markdown_table(
            ["variant", "seed", *tasks, "mean", "steps", "seconds"],
            [
                [
                    name,
                    str(each["seed"]),
                    *(f"{each['after'][task]:.3f}" for task in [*tasks, "mean"]),
                    str(each["steps"]),
                    f"{each['seconds']:.0f}",
                ]
                for name, each in flat
            ],
        ),
        "## Change",
        "± half of its 95 % interval over the items, each with itself; bold where it is more.",
        markdown_table(
            ["variant", "seed", *tasks, "mean"],
            [
                [name, str(each["seed"]), *(_change(each, task) for task in [*tasks, "mean"])]
                for name, each in flat
            ],
        ),
        "## Mean response length in tokens",
        "*inside*: tasks whose mean length is inside of its target.",
        markdown_table(
            ["variant", "seed", *tasks, "inside"],
            [
                [
                    name,
                    str(each["seed"]),
                    *(
                        f"{each['length_before'][task]:.1f} → {each['length_after'][task]:.1f}"
                        for task in tasks
                    ),
                    f"{len(each['lengths_inside'])} of {len(tasks)}",
                ]
                for name, each in flat
            ],
        ),
        "## Gradient norms",
        "Norm of each task's own gradient, mean over the steps that measure it "
        "(`output.equity_steps`). *ratio*: largest over smallest.",
        markdown_table(
            ["variant", "seed", *tasks, "ratio"],
            [[name, str(each["seed"]), *_norms(each, tasks)] for name, each in flat],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _change(summary: dict[str, Any], task: str) -> str:
    """Return how much a task's reward rose, with its interval item by item."""
    change = summary["after"][task] - summary["before"][task]
    low, high = summary["interval_change"][task]
    text = f"{change:+.3f} ± {(high - low) / 2:.3f}"
    return text if low <= 0 <= high else f"**{text}**"


def _norms(summary: dict[str, Any], tasks: list[str]) -> list[str]:
    """Return the cells of a run's gradient norms, and the largest over the smallest."""
    norms = [summary["gradient_norms"][task] for task in tasks]
    if None in norms:
        return ["–"] * (len(tasks) + 1)
    return [*(f"{norm:.2f}" for norm in norms), f"{max(norms) / min(norms):.1f}"]


def _row(values: dict[str, float], tasks: list[str]) -> str:
    return ", ".join(f"{task} {values[task]:.3f}" for task in tasks) + "."


if __name__ == "__main__":
    main()
