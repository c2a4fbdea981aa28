"""Time of the advantages inside verl: g2rpo's estimator and verl's own.

    python benchmarks/plugins_verl.py --output benchmarks/results/plugins_verl.md

In an environment with verl (the extra ``verl``). Each estimator is called as verl's V1 trainer does
it, on a batch of prompts with eight responses; ours within the trainer that hands it the labels of
six tasks, and so with the task stage, which verl's lack. The contenders take turns, so that what
else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _report import markdown_table, measured_on, publish
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from g2rpo_verl.estimators import Handover, handed_over, tasks_of
from g2rpo_verl.options import Options, read_options
from g2rpo_verl.shaping import Shaping

RESPONSES, TASKS = 8, 6
NAMES = ("g2rpo", "grpo", "grpo_vectorized")
CONFIG = {"g2rpo": {"tasks": [f"task {number}" for number in range(TASKS)]}}


def main() -> None:
    """Measure all implementations alternately, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=512, help="Longest response.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    data = make_batch(arguments.rollouts, arguments.tokens)
    options = read_options(CONFIG)
    for name in NAMES:
        run(data, name, options, arguments.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for round_number in range(arguments.rounds):
        for place in range(len(NAMES)):
            name = NAMES[(place + round_number) % len(NAMES)]
            started = time.perf_counter()
            run(data, name, options, arguments.tokens)
            seconds[name].append(time.perf_counter() - started)
    text = report(seconds, arguments)
    publish(text, arguments.output)


def make_batch(size: int, tokens: int) -> DataProto:
    """Return rows in a random order, a third of the prompts with rewards of 0 and 1."""
    draw = np.random.default_rng(0)
    prompts = draw.permutation(np.arange(size) // RESPONSES)
    rewards = draw.random(size)
    rewards = np.where(prompts % 3 == 0, rewards.round(), rewards)
    lengths = torch.from_numpy(draw.integers(1, tokens + 1, size))
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    at_last = torch.zeros(size, tokens)
    at_last[torch.arange(size), lengths - 1] = torch.from_numpy(rewards).float()
    columns = {
        "uid": np.asarray([f"prompt {prompt}" for prompt in prompts], dtype=object),
        "keys": np.asarray([f"prompt {p}_{row}_0" for row, p in enumerate(prompts)], dtype=object),
        "data_source": np.asarray([f"task {p % TASKS}" for p in prompts], dtype=object),
    }
    fields = {"token_level_rewards": at_last, "response_mask": mask}
    return DataProto(TensorDict(fields, batch_size=size), columns)


def run(data: DataProto, name: str, options: Options, longest: int) -> Any:
    """Compute advantages like verl's trainer, and g2rpo's like the trainer with tasks."""
    keys = data.non_tensor_batch["keys"].tolist()
    tasks, names = tasks_of(data.non_tensor_batch, options, len(keys))
    with handed_over(Handover(Shaping(options, longest, names), tasks, {}, keys)):
        return compute_advantage_for_multi_trajectories(data, keys, name, config=CONFIG)


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace) -> str:
    """Return the table: median times, and the median of the ratios within a round."""
    rows = []
    for name, times in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds["g2rpo"], times, strict=True)]
        rows.append([f"`{name}`", f"{1000 * median(times):.2f}", f"{median(ratios):.2f}"])
    return (
        f"# Advantages inside verl\n\n{arguments.rollouts} rollouts, {RESPONSES} to a prompt, "
        f"responses of up to {arguments.tokens} tokens, {arguments.rounds} rounds in turn. "
        f"{measured_on(packages=['verl', 'torch', 'numpy'])}\n\n"
        + markdown_table(["estimator", "median ms", "`g2rpo` / this one"], rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
