"""One training step, in the order in which it happens: prompts, rollouts, rewards, update."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source
from g2rpo_trainer.run.metrics import equity_metrics, rollout_metrics
from g2rpo_trainer.run.progress import Progress
from g2rpo_trainer.run.shaping import Advantages, Shaping
from g2rpo_trainer.scoring import Floats, Scorer

from .distributed.processes import Processes
from .importance import importance_weights, sampler_metrics
from .learning.batch import Batch
from .learning.equity import gradient_norms
from .learning.optimizer import set_learning_rate
from .learning.selection import high_entropy_tokens
from .learning.update import Metrics, mini_batch_totals, update_policy, with_reference
from .model.policy_model import Policy
from .rollouts import Rollouts, draw_rollouts
from .sampling import Sampler, sample_with_policy
from .stopwatch import Stopwatch


class StepResult(NamedTuple):
    """What a step reports.

    Attributes
    ----------
    metrics : dict of str to float
    completions : list of dict
        One of each rollout: ``task``, ``prompt``, ``response``, ``length`` in tokens, ``ended``,
        ``advantage``, the components of its reward by their names, ``record``, the number of its
        prompt in the run, and ``kept``, whether the step learned from it; ``opened`` where the
        response begins with a text of the prompt, which is not part of its length.
    """

    metrics: Metrics
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
) -> StepResult:
    """Sample, score and learn once.

    Parameters
    ----------
    policy : Policy
        Whose weights change.
    optimizer : torch.optim.Optimizer
        Over the policy's parameters.
    shaping : Shaping
        Turns rewards into advantages.
    config : TrainConfig
        The run.
    source : Source
        Of the prompts.
    progress : Progress
        Where the run stands; moved on. Data and random numbers follow from it and the seed, so a
        resumed run repeats them.
    scorer : Scorer
        Says what responses are worth.
    reference : Policy, optional
        What the KL term holds on to.
    sampler : Sampler
        What samples the policy; by default the policy itself.

    Returns
    -------
    StepResult
    """
    watch = Stopwatch()
    set_learning_rate(optimizer, config.optimization, progress.step)
    torch.manual_seed(_step_seed(config.seed, progress.step))
    drawn = draw_rollouts(policy, sampler, scorer, config, source, progress.position, watch)
    # Of a step that keeps no prompt.
    advantages, batch = Advantages(np.zeros(0, np.float32), None), None
    learned: Metrics = {}
    if drawn.keeps.any():
        with watch.part("scoring"):
            advantages, batch = _shaped(drawn, shaping, config, policy.device)
    if batch is None:
        progress.empty_steps += 1
    else:
        with watch.part("update"):
            steered = _steered(batch, shaping, config)
            options = config.optimization
            tasks = config.data.tasks
            batch, learned = high_entropy_tokens(batch, options.top_entropy_quantile, tasks)
            if reference is not None:
                batch = with_reference(batch, reference, config)
            measured = gradient_norms(policy, batch, steered, progress.step + 1)
            learned |= equity_metrics(measured.norms) if measured.norms else {}
            learned |= update_policy(policy, optimizer, batch, steered, progress)
            shaping.balance(measured.with_signal, progress.step + 1)
    table = _table(drawn, progress.position, advantages)
    progress.step += 1
    progress.position += len(drawn.records)
    metrics = {
        **_rollout_metrics(drawn, advantages, config, progress),
        **shaping.metrics(),
        **Processes.current().add_up(scorer.metrics()),
        **learned,
        "learning_rate": optimizer.param_groups[0]["lr"],
        **watch.metrics(),
    }
    return StepResult(metrics, table)


def _shaped(
    drawn: Rollouts, shaping: Shaping, config: TrainConfig, device: torch.device
) -> tuple[Advantages, Batch | None]:
    """Return what the step learns from: only the prompts that are kept take part in it.

    Advantages are those of the rollouts of all processes, and the batch is this process's own,
    without the responses that are masked as truncated; None if that leaves none to any process.
    """
    kept = drawn.kept
    rewards = drawn.rewards.rows(kept)
    _, numbers = np.unique(drawn.groups[kept], return_inverse=True)
    tasks = drawn.tasks(config.data.tasks)[kept]
    masking = config.optimization.mask_truncated_completions
    counts = drawn.outcomes.ended[kept] if masking != "off" else np.ones(len(kept), bool)
    absent = ~counts if masking == "all" else None
    each = len(drawn.texts) // len(drawn.records)
    advantages = shaping(rewards, drawn.outcomes.lengths[kept], each, tasks, absent)
    if not counts.any():
        return advantages, None
    own = np.isin(kept, drawn.own)
    groups = np.zeros_like(numbers)
    groups[own] = np.unique(numbers[own], return_inverse=True)[1]
    numbers[counts] = np.unique(numbers[counts], return_inverse=True)[1]
    own &= counts

    def placed(column: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(column)).to(device)

    rows = placed(np.flatnonzero(np.isin(drawn.own, kept[counts])))
    completions = drawn.completions.rows(rows)
    policy, length = advantages.policy, advantages.length
    batch = Batch(
        prompts=drawn.prompts,
        groups=placed(groups[own]),
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        advantages=placed(shaping.weighted(policy, tasks)[own]),
        length_advantages=None if length is None else placed(shaping.weighted(length, tasks)[own]),
        tasks=placed(tasks[own]),
        importance_weights=importance_weights(completions, config.rollout),
        numbers=placed(numbers[own]),
        sampler_logprobs=completions.sampler_logprobs,
    )
    return advantages, batch


def _steered(batch: Batch, shaping: Shaping, config: TrainConfig) -> TrainConfig:
    """Return the configuration with this step's entropy weights."""
    totals: Any = mini_batch_totals(batch, config)
    means, tokens = totals.task_entropy.cpu().numpy(), totals.task_tokens.cpu().numpy()
    return shaping.steer(means, tokens > 0)


def _rollout_metrics(
    drawn: Rollouts,
    advantages: Advantages,
    config: TrainConfig,
    progress: Progress,
) -> Metrics:
    """Describe all rollouts, also those that are dropped: what is kept is not the policy's mean."""
    names = config.data.tasks
    length_reward = advantages.length_reward
    if length_reward is not None:
        length_reward = _of_all(drawn, length_reward, np.nan)
    metrics = rollout_metrics(
        drawn.rewards,
        drawn.outcomes,
        drawn.groups,
        drawn.tasks(names),
        names,
        length_reward,
        masks_truncated=config.optimization.mask_truncated_completions != "off",
    )
    metrics |= sampler_metrics(drawn.completions, config.rollout)
    if config.rollout.dynamic_sampling.mode == "off":
        return metrics
    return {
        **metrics,
        **drawn.metrics(names),
        "sampling/empty_steps": float(progress.empty_steps),
    }


def _table(drawn: Rollouts, position: int, advantages: Advantages) -> list[dict[str, Any]]:
    columns = {
        "length": drawn.outcomes.lengths,
        "ended": drawn.outcomes.ended,
        "kept": drawn.keeps[drawn.groups],
        "advantage": _of_all(drawn, advantages.policy, 0.0),
        **drawn.rewards.columns(),
    }
    if advantages.length_reward is not None:
        columns["length_reward"] = _of_all(drawn, advantages.length_reward, np.nan)
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


def _of_all(drawn: Rollouts, values: Floats, fill: float) -> Floats:
    """Return values of the kept rollouts as a column of all, (N,)."""
    column = np.full(len(drawn.groups), fill, values.dtype)
    column[drawn.kept] = values
    return column


def _step_seed(seed: int, step: int) -> int:
    # Far enough apart that no step of one run shares its random numbers with another run's.
    return (seed * 1_000_003 + step) % 2**63
