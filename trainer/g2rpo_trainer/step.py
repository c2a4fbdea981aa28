"""One training step, in the order in which it happens: prompts, rollouts, rewards, update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from g2rpo_trainer.advantages import Advantages, Flags, Shaping
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source
from g2rpo_trainer.metrics import Stopwatch, equity_metrics, rollout_metrics
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.scoring import Floats, Scorer

from .batch import Batch, high_entropy_tokens
from .distributed import Ranks
from .equity import gradient_norms
from .importance import importance_weights, sampler_metrics
from .model.policy_model import Policy
from .optimizer import set_learning_rate
from .rollouts import Rollouts, draw_rollouts
from .sampling import Sampler, sample_with_policy
from .update import mini_batch_totals, update_policy, with_reference


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
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    shaping: Shaping,
    config: TrainConfig,
    source: Source,
    progress: Progress,
    scorer: Scorer,
    reference: Policy | None = None,
    sampler: Sampler = sample_with_policy,
    ranks: Ranks = Ranks(),
) -> StepResult:
    """Sample responses, score them, and update the policy once.

    Parameters
    ----------
    policy : Policy
        Policy to train.
    optimizer : torch.optim.Optimizer
        Optimiser of the policy's parameters.
    shaping : Shaping
        Turns rewards into advantages.
    config : TrainConfig
        Configuration of the run; its tasks are named.
    source : Source
        Source of the prompts.
    progress : Progress
        Counters of the run, which the step advances. They and the seed determine data and random
        numbers, so a resumed run repeats them.
    scorer : Scorer
        Scores the responses.
    reference : Policy, optional
        Reference of the KL term.
    sampler : Sampler
        Samples the responses; by default the policy itself does.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    StepResult
    """
    watch = Stopwatch()
    set_learning_rate(optimizer, config.optimization, progress.step)
    torch.manual_seed(_step_seed(config.seed, progress.step))
    drawn = draw_rollouts(policy, sampler, scorer, config, source, progress.position, watch, ranks)
    with watch.part("scoring"):
        counts = _counted(drawn, config)
        advantages = _advantages(drawn, counts, shaping, config)
        batch = _own_batch(drawn, counts, advantages, config, policy.device)
    learned: dict[str, float] = {}
    if batch is None:
        progress.empty_steps += 1
    else:
        with watch.part("update"):
            learned = _learn(policy, optimizer, batch, shaping, config, progress, reference, ranks)
    completions = _completion_rows(drawn, progress.position, advantages)
    progress.step += 1
    progress.position += len(drawn.records)
    metrics = {
        **_rollout_metrics(drawn, advantages, config, progress, ranks),
        **shaping.metrics(),
        **ranks.reduce_by_name(scorer.metrics()),
        **learned,
        "learning_rate": optimizer.param_groups[0]["lr"],
        **watch.metrics(),
    }
    return StepResult(metrics, completions)


def _counted(drawn: Rollouts, config: TrainConfig) -> Flags:
    """Return which of the kept rollouts enter the loss: those not masked as truncated."""
    if config.optimization.mask_truncated_completions == "off":
        return np.ones(len(drawn.kept), bool)
    counts: Flags = drawn.outcomes.ended[drawn.kept]
    return counts


def _advantages(
    drawn: Rollouts, counts: Flags, shaping: Shaping, config: TrainConfig
) -> Advantages:
    """Return the advantages of the kept rollouts of all ranks."""
    kept = drawn.kept
    if not len(kept):
        nothing = np.zeros(0, np.float32)
        return Advantages(nothing, None, None, np.ones(len(config.data.tasks)))
    rewards = drawn.rewards.rows(kept)
    absent = ~counts if config.optimization.mask_truncated_completions == "all" else None
    num_generations = len(drawn.texts) // len(drawn.records)
    tasks = drawn.tasks(config.data.tasks)[kept]
    return shaping(rewards, drawn.outcomes.lengths[kept], num_generations, tasks, absent)


def _own_batch(
    drawn: Rollouts,
    counts: Flags,
    advantages: Advantages,
    config: TrainConfig,
    device: torch.device,
) -> Batch | None:
    """Return this rank's rollouts that enter the loss; None if no rank has any."""
    if not counts.any():
        return None
    kept = drawn.kept
    prompts, tasks = drawn.groups[kept], drawn.tasks(config.data.tasks)[kept]
    own = np.isin(kept, drawn.own)
    used = own & counts

    def on_device(column: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(column)).to(device)

    rows = on_device(np.flatnonzero(np.isin(drawn.own, kept[counts])))
    completions = drawn.completions.rows(rows)
    weighted = advantages.weighted(tasks)
    return Batch(
        prompts=drawn.prompts,
        groups=on_device(np.searchsorted(np.unique(prompts[own]), prompts[used])),
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        advantages=on_device(weighted.policy[used]),
        length_advantages=None if weighted.length is None else on_device(weighted.length[used]),
        tasks=on_device(tasks[used]),
        importance_weights=importance_weights(completions, config.rollout),
        # All ranks number the prompts alike.
        numbers=on_device(np.searchsorted(np.unique(prompts[counts]), prompts[used])),
        sampler_logprobs=completions.sampler_logprobs,
    )


def _learn(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    shaping: Shaping,
    config: TrainConfig,
    progress: Progress,
    reference: Policy | None,
    ranks: Ranks,
) -> dict[str, float]:
    """Update the policy and the controllers; return the metrics of both."""
    totals: Any = mini_batch_totals(batch, config, ranks)
    present = totals.task_tokens.cpu().numpy() > 0
    shaping.adapt_entropy_weights(totals.task_entropy.cpu().numpy(), present)
    entropy_weights = shaping.entropy_weights.tolist()
    options = config.optimization
    batch, metrics = high_entropy_tokens(
        batch, options.top_entropy_quantile, config.data.tasks, ranks
    )
    if reference is not None:
        batch = with_reference(batch, reference, config, ranks)
    measured = gradient_norms(policy, batch, config, progress.step + 1, entropy_weights, ranks)
    if measured.norms:
        metrics |= equity_metrics(measured.norms)
    metrics |= update_policy(policy, optimizer, batch, config, progress, entropy_weights, ranks)
    shaping.adapt_task_weights(measured.with_signal, progress.step + 1)
    return metrics


def _rollout_metrics(
    drawn: Rollouts, advantages: Advantages, config: TrainConfig, progress: Progress, ranks: Ranks
) -> dict[str, float]:
    """Return the metrics of all rollouts: the mean of the kept ones is not that of the policy."""
    names = config.data.tasks
    length_reward = advantages.length_reward
    metrics = rollout_metrics(
        drawn.rewards,
        drawn.outcomes,
        drawn.groups,
        drawn.tasks(names),
        names,
        None if length_reward is None else _column_of_all(drawn, length_reward, np.nan),
        masks_truncated=config.optimization.mask_truncated_completions != "off",
    )
    metrics |= sampler_metrics(drawn.completions, config.rollout, ranks)
    if config.rollout.dynamic_sampling.mode != "off":
        metrics |= drawn.metrics(names)
        metrics["sampling/empty_steps"] = float(progress.empty_steps)
    return metrics


def _completion_rows(
    drawn: Rollouts, position: int, advantages: Advantages
) -> list[dict[str, Any]]:
    """Return :attr:`StepResult.completions`."""
    columns = {
        "length": drawn.outcomes.lengths,
        "ended": drawn.outcomes.ended,
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
            "task": drawn.records[group].task,
            "prompt": drawn.records[group].problem,
            **({"opened": drawn.opened[group]} if drawn.opened[group] else {}),
            "response": text,
            **{name: column[row] for name, column in values.items()},
        }
        for row, (group, text) in enumerate(zip(drawn.groups.tolist(), drawn.texts, strict=True))
    ]


def _column_of_all(drawn: Rollouts, values: Floats, fill: float) -> Floats:
    """Return values of the kept rollouts as a column of all rollouts, (N,)."""
    column = np.full(len(drawn.groups), fill, values.dtype)
    column[drawn.kept] = values
    return column


def _step_seed(seed: int, step: int) -> int:
    # Far enough apart that no step of one run shares its random numbers with another run's.
    return (seed * 1_000_003 + step) % 2**63
