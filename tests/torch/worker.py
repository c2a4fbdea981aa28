"""The program of one process of test_collectives.py, started by torchrun.

    torchrun --nproc-per-node=2 worker.py OUTPUT

Rank 0 writes the results as JSON. The batch is the same for any number of processes: each
takes a share of it, and shares differ in size.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist

import g2rpo
from g2rpo_torch import gather_rollouts, reduce_totals

SEQUENCES, TOKENS, VOCABULARY, TASKS, STEPS, MICRO_BATCHES = 48, 9, 13, 3, 20, 4


def shares(size: int, processes: int) -> list[slice]:
    """Cut ``size`` rows into unequal parts, through the middle of groups."""
    cuts = [round(size * (k / processes) ** 1.3) for k in range(processes + 1)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def advantages(rank: int, processes: int) -> dict[str, list[float]]:
    """Return every estimator's advantages of one global batch; the last process has no rollouts."""
    generator = torch.Generator().manual_seed(3)
    groups = torch.randint(0, 40, (300,), generator=generator)
    tasks = groups % TASKS
    rewards = torch.randn(300, generator=generator).exp()
    rewards = torch.where(tasks == 0, (rewards > 1).float(), rewards)
    rewards[7], rewards[11] = float("nan"), float("inf")
    busy = max(1, processes - 1)
    own = shares(300, busy)[rank] if rank < busy else slice(300, 300)
    (all_rewards, all_groups, all_tasks), local = gather_rollouts(
        rewards[own], groups[own], tasks[own]
    )
    assert local == own
    found = {}
    for name in ("gaussian", "grpo", "ema-grpo"):
        whole = g2rpo.ESTIMATORS[name](all_rewards, all_groups, all_tasks)
        (back,), _ = gather_rollouts(whole[local])
        assert torch.equal(back.view(torch.int32), whole.view(torch.int32))
        found[name] = back.view(torch.int32).tolist()
    return found


def train(rank: int, processes: int) -> list[dict[str, float]]:
    """Take steps on a small policy; return the loss terms of each, summed over all slices."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(VOCABULARY, 16), torch.nn.Tanh(), torch.nn.Linear(16, VOCABULARY)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)
    own = shares(SEQUENCES, processes)[rank]
    return [step(model, optimizer, own, number, processes) for number in range(STEPS)]


def step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    own: slice,
    number: int,
    processes: int,
) -> dict[str, float]:
    """Take one optimiser step on this process's share of a random batch."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, TOKENS + 1), generator=generator)
    lengths = torch.randint(0, TOKENS + 1, (SEQUENCES,), generator=generator)
    rewards = torch.rand(SEQUENCES, generator=generator)
    groups = torch.arange(SEQUENCES) // 6
    tokens, lengths = tokens[own], lengths[own]
    (rewards, groups), local = gather_rollouts(rewards[own], groups[own])
    scores = g2rpo.gaussian_advantages(rewards, groups, groups % TASKS)[local]
    tasks = (groups % TASKS)[local]
    mask = torch.arange(TOKENS) < lengths[:, None]

    def forward(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(tokens[rows, :-1])
        logprobs = logits.log_softmax(-1).gather(-1, tokens[rows, 1:, None])[..., 0]
        return logprobs, g2rpo.entropy_from_logits(logits)

    with torch.no_grad():
        old, entropies = forward(slice(None))
    totals = reduce_totals(
        g2rpo.batch_totals(mask, entropies=entropies, tasks=tasks, num_tasks=TASKS)
    )
    sums = torch.zeros(5)
    for rows in shares(len(tokens), max(1, MICRO_BATCHES // processes)):
        logprobs, entropies = forward(rows)
        terms, _ = g2rpo.g2rpo_loss(
            logprobs,
            old[rows] + 0.1,
            scores[rows],
            mask[rows],
            entropies=entropies,
            tasks=tasks[rows],
            entropy_low=torch.tensor([0.2, 2.6, 0.2]),
            entropy_high=torch.tensor([0.6, 3.0, 2.4]),
            entropy_weight=0.2,
            totals=totals,
        )
        terms.total.backward()
        sums += torch.stack([term.detach() for term in terms])
    if processes > 1:
        dist.all_reduce(sums)
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
    optimizer.step()
    optimizer.zero_grad()
    return dict(zip(g2rpo.LossTerms._fields, sums.tolist(), strict=True))


def task_tokens(rank: int, processes: int) -> list[float]:
    """Return how many tokens each task has in one batch of all processes, without entropies."""
    own = shares(SEQUENCES, processes)[rank]
    rows = torch.arange(SEQUENCES)[own]
    mask = torch.arange(TOKENS) < (rows % (TOKENS + 1))[:, None]
    counted = g2rpo.batch_totals(mask, tasks=rows % TASKS, num_tasks=TASKS)
    counts: list[float] = reduce_totals(counted).task_tokens.tolist()
    return counts


def mean_over_tasks(rank: int, processes: int) -> list[float]:
    """Return the loss of a batch with aggregation by task, and each row's gradient.

    The first task is on the first process alone, whose rows are the longest.
    """
    own = shares(SEQUENCES, processes)[rank]
    rows = torch.arange(SEQUENCES)
    tasks = torch.where(rows < 5, 0, 1 + rows % 2)[own]
    mask = torch.arange(TOKENS) < torch.where(rows < 5, TOKENS, rows % 4)[own, None]
    scores = torch.linspace(-1, 2, SEQUENCES)[own]
    logprobs = torch.full(mask.shape, -1.0, requires_grad=True)
    loss, _ = g2rpo.policy_loss(
        logprobs,
        logprobs.detach() - 0.1,
        scores,
        mask,
        aggregation="task",
        tasks=tasks,
        num_tasks=TASKS,
        task_weights=torch.tensor([0.5, 1.0, 2.0]),
        totals=reduce_totals(g2rpo.batch_totals(mask, tasks=tasks, num_tasks=TASKS)),
    )
    loss.backward()
    (slopes, losses), _ = gather_rollouts(
        logprobs.grad.sum(1), loss.detach().expand(len(scores)) / max(1, len(scores))
    )
    return [float(losses.sum()), *slopes.tolist()]


def disagreement(rank: int) -> str:
    """Return the error message when one process has an array of another dtype."""
    try:
        gather_rollouts(torch.zeros(2), torch.zeros((2, 3 + (rank == 1)), dtype=torch.int64))
    except ValueError as error:
        return str(error)
    return ""


def main(output: str) -> None:
    """Run all parts, in one process or in those of torchrun."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if processes > 1 else 0
    found = {
        "advantages": advantages(rank, processes),
        "losses": train(rank, processes),
        "task_tokens": task_tokens(rank, processes),
        "mean_over_tasks": mean_over_tasks(rank, processes),
    }
    if processes > 1:
        found["disagreement"] = disagreement(rank)
    if rank == 0:
        Path(output).write_text(json.dumps(found), encoding="utf-8")
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
