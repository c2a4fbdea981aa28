"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.records import heldout_records, reward_functions, with_tasks

from .device import resolve_device
from .policy_model import Policy, load_policy
from .prompts import encode_prompts
from .rollout import sample
from .scoring import score_responses

_SAMPLING_SEED = 260_408_539
_PROMPTS_AT_ONCE = 64


class Evaluation(NamedTuple):
    """Means over a task's held-out items, by task.

    Attributes
    ----------
    reward : dict of str to float
        Mean reward, with ``"mean"`` over the tasks; NaN for a task without held-out items.
    length : dict of str to float
        Mean response length in tokens.
    """

    reward: dict[str, float]
    length: dict[str, float]


def evaluate(
    model: str, description: RunDescription, display: Display | None = None
) -> dict[str, dict[str, float]]:
    """Load a model and evaluate it on the held-out items.

    Parameters
    ----------
    model : str
        ``"builtin"``, a folder or a hub id.
    description : RunDescription
        Its model, data and rollout sections.
    display : Display, optional
        Shows the progress.

    Returns
    -------
    dict
        ``{"reward": {task: mean, …, "mean": …}, "length": {task: mean tokens}}``.
    """
    description = with_tasks(description)
    data = description.data
    display = display or Display(0, data.tasks)
    device = resolve_device(description.model.device)
    policy = load_policy(
        model,
        device=device,
        dtype=description.model.dtype,
        shared_prompts=description.rollout.shared_prompts,
    )
    with display.phase("held-out items", len(data.tasks) * data.eval_items) as advance:
        return evaluate_policy(policy, description, advance=advance)._asdict()


def evaluate_policy(
    policy: Policy,
    description: RunDescription,
    *,
    advance: Callable[[int], None] = lambda items: None,
) -> Evaluation:
    """Sample answers to the held-out items of every task and score them.

    Parameters
    ----------
    policy : Policy
        Whose model is sampled, at the run's temperature.
    description : RunDescription
        Its data and rollout sections.
    advance : callable
        Called with the number of items done since its last call.

    Returns
    -------
    Evaluation
    """
    rewards, lengths = {}, {}
    with _own_random_numbers(policy.device):
        for task in description.data.tasks:
            rewards[task], lengths[task] = _evaluate_task(policy, description, task, advance)
    measured = [reward for reward in rewards.values() if not math.isnan(reward)]
    rewards["mean"] = sum(measured) / len(measured) if measured else math.nan
    return Evaluation(rewards, lengths)


def _evaluate_task(
    policy: Policy, description: RunDescription, task: str, advance: Callable[[int], None]
) -> tuple[float, float]:
    records = heldout_records(description.data, task)
    if not records:
        return math.nan, math.nan
    functions = reward_functions(description.data)
    rewards, lengths = [], []
    for start in range(0, len(records), _PROMPTS_AT_ONCE):
        part = records[start : start + _PROMPTS_AT_ONCE]
        completions = sample(
            policy,
            encode_prompts(policy, part),
            num_generations=description.data.eval_generations,
            max_completion_length=description.rollout.max_completion_length,
            temperature=description.rollout.temperature,
        )
        rewards.append(score_responses(part, completions.texts, functions).reward)
        lengths.append(completions.lengths.float())
        advance(len(part))
    return float(torch.cat(rewards).mean()), float(torch.cat(lengths).mean())


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SAMPLING_SEED)
        yield
