"""verl's policy loss, with the length term and the entropy term of each task added to it."""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from g2rpo import BatchTotals, LossOptions, LossTerms, g2rpo_loss
from g2rpo.metrics import BY_TASK, named

BATCH = "g2rpo"
"""Key of the trainer's description of the whole batch: names, totals, bounds and weights."""
TASKS, LENGTH = "g2rpo_tasks", "g2rpo_length_advantages"
"""Columns of the batch: each row's task, and advantage of its length."""
PREFIX = "g2rpo/"
"""Of the loss's metrics, to tell them from verl's own. Tasks stand there by their numbers, as verl
takes the smallest or largest of what has `min` or `max` in its name."""


def task_loss(
    config: Any, *, model_output: dict[str, Any], data: Any, dp_group: Any = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the loss of a micro-batch, and its part of the metrics.

    verl adds up micro-batches and averages over the ranks, and so do these terms: each is this
    micro-batch's share of that of the batch, times the number of ranks.

    Parameters
    ----------
    config : ActorConfig
        verl's section ``actor``; bound by the trainer.
    model_output, data, dp_group
        As verl passes them to a loss function.
    """
    loss, metrics = ppo_loss(config, model_output, data, dp_group)
    batch, ranks = tu.get_non_tensor_data(data, BATCH, None), data["dp_size"]
    columns = ["response_mask", "old_log_probs", "advantages", "rollout_is_weights"]
    rows = data.select(*columns, strict=False).to_padded_tensor()
    logprobs = no_padding_2_padding(model_output["log_probs"], data)
    terms, ratios = _terms(config, model_output, data, rows, logprobs, batch)
    parts = {"loss/entropy": ranks * terms.entropy}
    if LENGTH in data:
        mask = rows["response_mask"].bool()
        term, _ = get_policy_loss_fn(config.policy_loss.get("loss_mode", "vanilla"))(
            old_log_prob=rows["old_log_probs"],
            log_prob=logprobs,
            advantages=data[LENGTH][:, None] * mask,
            response_mask=mask,
            loss_agg_mode=config.loss_agg_mode,
            config=config,
            rollout_is_weights=rows.get("rollout_is_weights", None),
        )
        parts["loss/length"] = batch["length_weight"] * term
    policy = metrics["actor/pg_loss"].values[0]
    total = loss + sum(parts.values())
    values = {"loss/policy": policy, **parts, "loss/total": total}
    summed = {name: torch.as_tensor(value).item() for name, value in values.items()}
    summed |= {name: ranks * value for name, value in _by_task(ratios, batch).items()}
    for name, value in summed.items():
        metrics[PREFIX + name] = Metric(AggregationType.SUM, value)
    largest = ratios["tasks/ratio/max"]
    maxima = {"ratio/max": float(largest.max()), **_named("tasks/ratio/max", largest, batch)}
    for name, value in maxima.items():
        metrics[PREFIX + name] = Metric(AggregationType.MAX, value)
    return total, metrics


def _terms(
    config: Any, output: dict[str, Any], data: Any, rows: Any, logprobs: torch.Tensor, batch: Any
) -> tuple[LossTerms, dict[str, torch.Tensor]]:
    """Return the core's terms, of which the entropy's alone has a gradient, and ratios by task."""
    options: dict[str, Any] = {}
    if batch["task_entropy"] is not None:
        # bfloat16 as it comes, too coarse to add up or to compare with a bound.
        options["entropies"] = no_padding_2_padding(output["entropy"], data).float()
        for name in ("entropy_low", "entropy_high", "entropy_weight"):
            options[name] = logprobs.new_tensor(batch[name], dtype=torch.float32)
    low, high = (
        config.clip_ratio if ratio is None else ratio
        for ratio in (config.clip_ratio_low, config.clip_ratio_high)
    )
    return g2rpo_loss(
        logprobs.detach().float(),
        rows["old_log_probs"].float(),
        rows["advantages"].float(),
        rows["response_mask"].bool(),
        tasks=data[TASKS],
        num_tasks=len(batch["names"]),
        totals=_totals(data, batch, logprobs),
        options=LossOptions(epsilon=low, epsilon_high=high, dual_clip=config.clip_ratio_c),
        **options,
    )


def _totals(data: Any, batch: Any, like: torch.Tensor) -> BatchTotals:
    """Return the counts to divide by: a mini-batch's share of those of the batch of rollouts.

    Every token of a task then weighs the same in all mini-batches, and the side of its bounds is
    that of the batch under the policy that sampled it.
    """
    share = data["global_batch_size"] / batch["rows"]
    tokens = like.new_tensor(batch["task_tokens"], dtype=torch.float32) * share
    entropy = batch["task_entropy"]
    if entropy is not None:
        entropy = like.new_tensor(entropy, dtype=torch.float32)
    return BatchTotals(tokens.sum(), data["global_batch_size"], tokens, entropy)


def _by_task(ratios: dict[str, torch.Tensor], batch: Any) -> dict[str, float]:
    """Return this micro-batch's part of the means over tokens: of all tokens, and of each task."""
    tokens = torch.tensor(batch["task_tokens"])
    parts = {}
    for key, values in ratios.items():
        name = key.removeprefix(BY_TASK)
        if name == key or name in ("entropy", "ratio/max"):
            continue
        parts[name] = float((values.cpu() * tokens).sum() / tokens.sum())
        parts |= _named(key, values, batch)
    return parts


def _named(key: str, values: torch.Tensor, batch: Any) -> dict[str, float]:
    tokens = batch["task_tokens"]
    numbers = [str(number) for number in range(len(tokens))]
    return named(key, values, numbers, [bool(count) for count in tokens])
