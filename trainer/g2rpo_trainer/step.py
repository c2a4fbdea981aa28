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

from .batch import Batch
from .distributed import Ranks
from .equity import gradient_norms
from .model.policy_model import Policy
from .optimizer import set_learning_rate
from .rollouts import Rollouts, draw_rollouts
from .sampling import Sampler, sample_with_policy
from .token_weights import high_entropy_tokens, importance_weights, sampler_metrics
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
        Configuration of the run.
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
        batch = _own_batch(drawn, counts, advantages, config)
    learned: dict[str, float] = {}
    if batch is None:
        progress.empty_steps += 1
    else:
        with watch.part("update"):
            learned = _learn(policy, optimizer, batch, shaping, config, progress, reference, ranks)
    completions = _completion_rows(drawn, progress.position, advantages)
    progress.step += 1
    progress.position += len(drawn.problems)
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
    counts: Flags = drawn.ended[drawn.kept]
    return counts


def _advantages(
    drawn: Rollouts, counts: Flags, shaping: Shaping, config: TrainConfig
) -> Advantages:
    """Return the advantages of the kept rollouts of all ranks."""
    kept = drawn.kept
    if not len(kept):
        nothing = np.zeros(0, np.float32)
        return Advantages(nothing, None, None, np.ones(len(drawn.task_names)))
    absent = ~counts if config.optimization.mask_truncated_completions == "all" else None
    return shaping(
        drawn.rewards.rows(kept),
        drawn.lengths[kept],
        drawn.num_generations,
        drawn.tasks[kept],
        absent,
    )


def _own_batch(
    drawn: Rollouts, counts: Flags, advantages: Advantages, config: TrainConfig
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
        importance_weights=importance_weights(logprobs, sampled, mask, config.rollout),
        # All ranks number the prompts alike.
        numbers=on_device(np.searchsorted(np.unique(prompts[counts]), prompts[used])),
        sampler_logprobs=sampled,
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
    batch, metrics = high_entropy_tokens(batch, options.top_entropy_quantile, ranks)
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
    length_reward = advantages.length_reward
    metrics = rollout_metrics(
        drawn.rewards,
        lengths=drawn.lengths,
        ended=drawn.ended,
        entropies=drawn.total_entropies,
        groups=drawn.groups,
        tasks=drawn.tasks,
        names=drawn.task_names,
        length_reward=None
        if length_reward is None
        else _column_of_all(drawn, length_reward, np.nan),
        masks_truncated=config.optimization.mask_truncated_completions != "off",
    )
    metrics |= sampler_metrics(
        drawn.logprobs, drawn.sampler_logprobs, drawn.mask, config.rollout, ranks
    )
    if config.rollout.dynamic_sampling.mode != "off":
        metrics |= drawn.metrics()
        metrics["sampling/empty_steps"] = float(progress.empty_steps)
    return metrics


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
