"""One training step, in the order in which it happens: prompts, rollouts, rewards, update."""

from __future__ import annotations

import time

import torch

from g2rpo.run.description import RunDescription
from g2rpo.run.records import reward_functions, training_records

from .metrics import rollout_metrics
from .policy_model import Policy
from .prompts import encode_prompts
from .rollout import sample
from .scoring import score_responses
from .shaping import Shaping
from .update import Batch, Metrics, update_policy


def training_step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    shaping: Shaping,
    description: RunDescription,
    step: int,
    reference: Policy | None = None,
) -> Metrics:
    """Sample, score and learn once.

    Parameters
    ----------
    policy : Policy
        Whose weights change.
    optimizer : torch.optim.Optimizer
        Over the policy's parameters.
    shaping : Shaping
        Turns rewards into advantages.
    description : RunDescription
        The run.
    step : int
        From 0. Data and random numbers follow from it and the seed, so a resumed run repeats them.
    reference : Policy, optional
        What the KL term holds on to.

    Returns
    -------
    dict of str to float
        The step's metrics.
    """
    started = time.monotonic()
    rollout = description.rollout
    torch.manual_seed(_step_seed(description.seed, step))
    records = training_records(
        description.data, seed=description.seed, step=step, prompts=rollout.prompts_per_step
    )
    prompts = encode_prompts(policy, records)
    completions = sample(
        policy,
        prompts,
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
    )
    sampled = time.monotonic()

    names = description.data.tasks
    rewards = score_responses(records, completions.texts, reward_functions(description.data))
    groups = torch.arange(len(records)).repeat_interleave(rollout.num_generations)
    tasks = torch.tensor([names.index(record["task_type"]) for record in records])[groups]
    advantages = shaping(rewards, completions.lengths.cpu(), groups, tasks)
    scored = time.monotonic()

    device = policy.device
    batch = Batch(
        prompts=prompts,
        groups=groups.to(device),
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        advantages=advantages.policy.to(device),
        length_advantages=None if advantages.length is None else advantages.length.to(device),
        tasks=tasks.to(device),
    )
    if reference is not None:
        batch = batch.with_reference(reference, rollout.temperature)
    learned = update_policy(policy, optimizer, batch, description)
    finished = time.monotonic()
    return {
        **rollout_metrics(rewards, completions, groups, tasks, names),
        **learned,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "time/rollout": sampled - started,
        "time/scoring": scored - sampled,
        "time/update": finished - scored,
        "step_time": finished - started,
    }


def _step_seed(seed: int, step: int) -> int:
    # Far enough apart that no step of one run shares its random numbers with another run's.
    return (seed * 1_000_003 + step) % 2**63
