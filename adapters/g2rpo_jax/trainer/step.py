"""One training step, in the order in which it happens: prompts, rollouts, rewards, update."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import g2rpo
from g2rpo.data import PromptRecord
from g2rpo.run.description import RunDescription
from g2rpo.run.errors import RunError
from g2rpo.run.metrics import Outcomes, rollout_metrics
from g2rpo.run.progress import Progress
from g2rpo.run.records import training_records
from g2rpo.run.schedule import learning_rate_factor
from g2rpo.run.scorer import Rewards, Scorer
from g2rpo.run.sections import Optimization
from g2rpo.run.shaping import Advantages, Shaping
from g2rpo.run.update_metrics import Update, update_metrics

from .equity import gradient_equity
from .forward import completion_logprobs
from .policy_model import Policy
from .prompts import encode_prompts
from .rollout import sample
from .update import Batch, Trained, update_policy

Metrics = dict[str, float]


class StepResult(NamedTuple):
    """What a step makes and reports.

    Attributes
    ----------
    trained : Trained
        The policy and its optimiser after the step.
    metrics : dict of str to float
    completions : list of dict
        One of each rollout: ``task``, ``prompt``, ``response``, ``length`` in tokens, ``ended``,
        ``advantage``, the components of its reward by their names, and ``record``, the number of
        its prompt in the run.
    """

    trained: Trained
    metrics: Metrics
    completions: list[dict[str, Any]]


def training_step(
    trained: Trained,
    shaping: Shaping,
    description: RunDescription,
    progress: Progress,
    scorer: Scorer,
    reference: Policy | None = None,
) -> StepResult:
    """Sample, score and learn once.

    Parameters
    ----------
    trained : Trained
        The policy and its optimiser before the step.
    shaping : Shaping
        Turns rewards into advantages.
    description : RunDescription
        The run.
    progress : Progress
        Where the run stands; moved on. Data and random numbers follow from it and the seed, so a
        resumed run repeats them.
    scorer : Scorer
        Says what responses are worth.
    reference : Policy, optional
        What the KL term holds on to.

    Returns
    -------
    StepResult
    """
    started = time.monotonic()
    rollout, names, policy = description.rollout, description.data.tasks, trained.policy
    records = training_records(
        description.data,
        seed=description.seed,
        position=progress.position,
        prompts=rollout.prompts_per_step,
    )
    prompts = encode_prompts(policy, records)
    completions = sample(
        policy,
        prompts,
        jax.random.fold_in(jax.random.key(description.seed), progress.step),
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        limits=[rollout.limit_of(record["task_type"]) for record in records],
    )
    texts = completions.texts(policy)
    sampled = time.monotonic()

    rewards = scorer(records, texts)
    each = rollout.num_generations
    groups = np.repeat(np.arange(len(records), dtype=np.int32), each)
    tasks = np.array([names.index(record["task_type"]) for record in records], np.int32)[groups]
    advantages = shaping(rewards, completions.lengths(), groups, tasks)
    rows = (len(tasks), -1)
    entropies, mask = (
        np.asarray(each).reshape(rows) for each in (completions.entropies, completions.mask)
    )
    steered = shaping.steer(*g2rpo.task_means(entropies, mask, tasks, len(names)))
    outcomes = Outcomes(
        completions.lengths(), np.asarray(completions.ended).reshape(-1), entropies.sum(-1)
    )
    scored = time.monotonic()

    shape = completions.ended.shape
    length = advantages.length
    batch = Batch(
        prompts=prompts,
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        advantages=jnp.asarray(advantages.policy.reshape(shape)),
        length_advantages=None if length is None else jnp.asarray(length.reshape(shape)),
        tasks=jnp.asarray(tasks.reshape(shape)),
    )
    if reference is not None:
        batch = _with_reference(batch, reference, rollout.temperature)
    options = description.optimization
    rate = options.learning_rate * learning_rate_factor(options, progress.step)
    measured = gradient_equity(policy, batch, steered, progress.step + 1)
    trained, learned = update_policy(trained, batch, steered, rate)
    _count_skipped(learned, options, progress)
    finished = time.monotonic()
    table = _table(records, progress.position, texts, outcomes, rewards, advantages)
    progress.step += 1
    progress.position += len(records)
    metrics = {
        **rollout_metrics(rewards, outcomes, groups, tasks, names, advantages.length_reward),
        **scorer.metrics(),
        **shaping.metrics(),
        **measured,
        **update_metrics(learned, names),
        "optimization/skipped_steps": float(progress.skipped_steps),
        "learning_rate": rate,
        "time/rollout": sampled - started,
        "time/scoring": scored - sampled,
        "time/update": finished - scored,
        "step_time": finished - started,
    }
    return StepResult(trained, metrics, table)


def _with_reference(batch: Batch, reference: Policy, temperature: float) -> Batch:
    logprobs, _ = completion_logprobs(
        reference.definition,
        reference.params,
        reference.head_bias,
        batch.prompts,
        batch.tokens,
        batch.mask,
        temperature=temperature,
    )
    return batch._replace(ref_logprobs=logprobs)


def _count_skipped(updates: Sequence[Update], options: Optimization, progress: Progress) -> None:
    """Count the updates whose gradient was not finite; raise if too many came in a row."""
    for update in updates:
        norm = float(update.reported["grad_norm"])
        if math.isfinite(norm):
            progress.skipped_in_a_row = 0
            continue
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row > options.max_skipped_steps:
            raise RunError(
                f"step {progress.step + 1}: the gradient is not finite ({norm}), "
                f"and so were the {options.max_skipped_steps} before it "
                "(optimization.max_skipped_steps); the weights are still those of the last finite "
                "one. Lower optimization.learning_rate, or optimization.max_grad_norm"
            )


def _table(
    records: Sequence[PromptRecord],
    position: int,
    texts: Sequence[str],
    outcomes: Outcomes,
    rewards: Rewards,
    advantages: Advantages,
) -> list[dict[str, Any]]:
    each = len(texts) // len(records)
    columns = {
        "length": outcomes.lengths,
        "ended": outcomes.ended,
        "advantage": advantages.policy,
        **rewards._asdict(),
    }
    if advantages.length_reward is not None:
        columns["length_reward"] = advantages.length_reward
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "record": position + row // each,
            "task": records[row // each]["task_type"],
            "prompt": records[row // each]["problem"],
            "response": text,
            **{name: column[row] for name, column in values.items()},
        }
        for row, text in enumerate(texts)
    ]
