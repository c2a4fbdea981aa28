"""One training step, in the order in which it happens: prompts, rollouts, rewards, update."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from g2rpo_trainer.advantages import Advantages, Flags, Shaping
from g2rpo_trainer.config import Optimization, Output, Rollout
from g2rpo_trainer.metrics import Stopwatch, equity_metrics, rollout_metrics
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.scoring import Floats

from .batch import Batch
from .equity import gradient_norms
from .optimizer import set_learning_rate
from .rollouts import Collector, Rollouts
from .token_weights import high_entropy_tokens, importance_weights, sampler_metrics
from .update import Learner


@dataclass(frozen=True)
class StepResult:
    """The metrics and responses of a step.

    Attributes
    ----------
    metrics : dict of str to float
        Metrics by name.
    completions : list of dict
        One for each rollout: ``record``, the number of its prompt in the run, ``task``,
        ``prompt``, ``response``, ``length`` in tokens, ``ended``, ``advantage``, the components of
        its reward by their names, and ``kept``, whether the step learned from it; ``opened`` where
        the response begins with a text of the prompt, which does not count in its length.
    """

    metrics: dict[str, float]
    completions: list[dict[str, Any]]


def training_step(
    collector: Collector, learner: Learner, output: Output, progress: Progress
) -> StepResult:
    """Sample responses, score them, and update the policy once.

    Parameters
    ----------
    collector : Collector
        Draws prompts, and has responses sampled and scored.
    learner : Learner
        Policy to train, with its optimiser and loss.
    output : Output
        Period and prompts of the measurement of each task's gradient.
    progress : Progress
        Counters of the run, which the step advances. They and the seed determine data and random
        numbers, so a resumed run repeats them.

    Returns
    -------
    StepResult
    """
    watch, ranks = Stopwatch(), learner.ranks
    options, rollout, shaping = learner.options, collector.options, learner.shaping
    set_learning_rate(learner.optimizer, options, progress.step)
    torch.manual_seed(_step_seed(collector.seed, progress.step))
    drawn = collector.collect(progress.position, watch)
    with watch.part("scoring"):
        counts = _counted(drawn, options)
        advantages = _advantages(drawn, counts, shaping, options)
        batch = _own_batch(drawn, counts, advantages, rollout)
    learned: dict[str, float] = {}
    if batch is None:
        progress.empty_steps += 1
    else:
        position = progress.position + len(drawn.problems)
        is_last = progress.step + 1 >= options.steps
        ahead = nullcontext() if is_last else collector.ahead(position)
        with watch.part("update"), ahead:
            learned = _learn(learner, batch, output, progress)
    completions = _completion_rows(drawn, progress.position, advantages)
    progress.step += 1
    progress.position += len(drawn.problems)
    metrics = _rollout_metrics(drawn, advantages, options)
    metrics |= sampler_metrics(drawn.logprobs, drawn.sampler_logprobs, drawn.mask, rollout, ranks)
    if rollout.dynamic_sampling.mode != "off":
        metrics |= {**drawn.metrics(), "sampling/empty_steps": float(progress.empty_steps)}
    metrics |= {
        **shaping.metrics(),
        **ranks.reduce_by_name(collector.scorer.metrics()),
        **learned,
        "learning_rate": learner.optimizer.param_groups[0]["lr"],
        **watch.metrics(),
    }
    return StepResult(metrics, completions)


def _counted(drawn: Rollouts, options: Optimization) -> Flags:
    """Return which of the kept rollouts enter the loss: those not masked as truncated."""
    if options.mask_truncated_completions == "off":
        return np.ones(len(drawn.kept), bool)
    counts: Flags = drawn.ended[drawn.kept]
    return counts


def _advantages(
    drawn: Rollouts, counts: Flags, shaping: Shaping, options: Optimization
) -> Advantages:
    """Return the advantages of the kept rollouts of all ranks."""
    kept = drawn.kept
    if not len(kept):
        nothing = np.zeros(0, np.float32)
        return Advantages(nothing, None, None, np.ones(len(drawn.task_names)))
    absent = ~counts if options.mask_truncated_completions == "all" else None
    return shaping(
        drawn.rewards.rows(kept),
        drawn.lengths[kept],
        drawn.num_generations,
        drawn.tasks[kept],
        absent,
    )


def _own_batch(
    drawn: Rollouts, counts: Flags, advantages: Advantages, options: Rollout
) -> Batch | None:
    """Return this rank's rollouts that enter the loss; None if no rank has any."""
    if not counts.any():
        return None
    kept = drawn.kept
    prompts, tasks = drawn.groups[kept], drawn.tasks[kept]
    own = np.isin(kept, drawn.own)
    used = own & counts

    def on_device(column: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(column)).to(drawn.tokens.device)

    rows = on_device(np.flatnonzero(np.isin(drawn.own, kept[counts])))
    logprobs, mask = drawn.logprobs[rows], drawn.mask[rows]
    sampled = None if drawn.sampler_logprobs is None else drawn.sampler_logprobs[rows]
    weighted = advantages.weighted(tasks)
    return Batch(
        prompts=drawn.prompts,
        groups=on_device(np.searchsorted(np.unique(prompts[own]), prompts[used])),
        tokens=drawn.tokens[rows],
        mask=mask,
        logprobs=logprobs,
        entropies=drawn.entropies[rows],
        advantages=on_device(weighted.policy[used]),
        length_advantages=None if weighted.length is None else on_device(weighted.length[used]),
        tasks=on_device(tasks[used]),
        task_names=drawn.task_names,
        importance_weights=importance_weights(logprobs, sampled, mask, options),
        # All ranks number the prompts alike.
        numbers=on_device(np.searchsorted(np.unique(prompts[counts]), prompts[used])),
        sampler_logprobs=sampled,
    )


def _learn(learner: Learner, batch: Batch, output: Output, progress: Progress) -> dict[str, float]:
    """Update the policy and the controllers; return the metrics of both."""
    shaping, step = learner.shaping, progress.step + 1
    totals: Any = learner.totals(batch)
    present = totals.task_tokens.cpu().numpy() > 0
    shaping.adapt_entropy_weights(totals.task_entropy.cpu().numpy(), present)
    quantile = learner.options.top_entropy_quantile
    batch, metrics = high_entropy_tokens(batch, quantile, learner.ranks)
    batch = learner.with_reference(batch)
    measured = gradient_norms(learner, batch, output, step)
    if measured.norms:
        metrics |= equity_metrics(measured.norms)
    metrics |= learner.update(batch, progress)
    shaping.adapt_task_weights(measured.with_signal, step)
    return metrics


def _rollout_metrics(
    drawn: Rollouts, advantages: Advantages, options: Optimization
) -> dict[str, float]:
    """Return the metrics of all rollouts: the mean of the kept ones is not that of the policy."""
    length_reward = advantages.length_reward
    if length_reward is not None:
        length_reward = _column_of_all(drawn, length_reward, np.nan)
    return rollout_metrics(
        drawn.rewards,
        lengths=drawn.lengths,
        ended=drawn.ended,
        entropies=drawn.total_entropies,
        groups=drawn.groups,
        tasks=drawn.tasks,
        names=drawn.task_names,
        length_reward=length_reward,
        masks_truncated=options.mask_truncated_completions != "off",
    )


def _completion_rows(
    drawn: Rollouts, position: int, advantages: Advantages
) -> list[dict[str, Any]]:
    """Return :attr:`StepResult.completions`."""
    columns = {
        "length": drawn.lengths,
        "ended": drawn.ended,
        "kept": drawn.keeps[drawn.groups],
        "advantage": _column_of_all(drawn, advantages.policy, 0.0),
        **drawn.rewards.columns(),
    }
    if advantages.length_reward is not None:
        columns["length_reward"] = _column_of_all(drawn, advantages.length_reward, np.nan)
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "record": position + group,
            "task": drawn.task_names[drawn.prompt_tasks[group]],
            "prompt": drawn.problems[group],
            **({"opened": drawn.opened[group]} if drawn.opened[group] else {}),
            "response": text,
            **{name: column[row] for name, column in values.items()},
        }
        for row, (group, text) in enumerate(zip(drawn.groups.tolist(), drawn.texts, strict=True))
    ]


def _column_of_all(drawn: Rollouts, values: Floats, fill: float) -> Floats:
    """Return values of the kept rollouts as a column of all rollouts, (N,)."""
    column = np.full(len(drawn.texts), fill, values.dtype)
    column[drawn.kept] = values
    return column


def _step_seed(seed: int, step: int) -> int:
    # Far enough apart that no step of one run shares its random numbers with another run's.
    return (seed * 1_000_003 + step) % 2**63
