"""Linear policies of many seeds, trained by the core's own loss on PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import g2rpo

from .world import FEATURES, LONGEST, TASKS, TOKENS, Flags, Floats, Integers, World


class Policies:
    """Weights (S, T V, F) of one linear policy a seed, with Adam's moments."""

    def __init__(self, weights: Floats) -> None:
        self.weights = weights.copy()
        self._moments = (np.zeros_like(weights), np.zeros_like(weights))
        self._steps = 0

    def logits(self, features: Floats) -> Floats:
        """Return logits (S, P, T, V) of features (S, P, F)."""
        flat = features @ self.weights.swapaxes(1, 2)
        return flat.reshape(*features.shape[:2], LONGEST, TOKENS)

    def descend(self, gradient: Floats, rate: float) -> None:
        """Take a step of Adam."""
        self._steps += 1
        first, second = self._moments
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient**2 - second)
        scale = np.sqrt(second / (1 - 0.999**self._steps)) + 1e-8
        self.weights -= rate / (1 - 0.9**self._steps) * first / scale


def cold_start(world: World, steps: int = 300) -> Floats:
    """Return weights that have seen some right answers, as those of a pretrained model have."""
    policies = Policies(np.zeros((len(world.seeds), LONGEST * TOKENS, FEATURES)))
    for step in range(steps):
        prompts = world.prompts("cold start", step, 4)
        logits = policies.logits(prompts.features)
        error = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
        error -= np.eye(TOKENS)[prompts.answers]
        policies.descend(weight_gradient(error, prompts.features), 0.05)
    return policies.weights


def weight_gradient(by_logits: Floats, features: Floats) -> Floats:
    """Return the gradient (S, T V, F) by the weights, from that by the logits (S, P, T, V)."""
    return by_logits.reshape(*by_logits.shape[:2], -1).swapaxes(1, 2) @ features


def task_gradients(by_logits: Floats, features: Floats) -> Floats:
    """Return the gradient of each task's own prompts, (S, K, T V, F)."""
    shape = (len(features), len(TASKS), -1)
    errors = by_logits.reshape(*shape, LONGEST * TOKENS)
    return errors.swapaxes(2, 3) @ features.reshape(*shape, FEATURES)


@dataclass(frozen=True)
class Batch:
    """Responses with their advantages, as the loss takes them.

    Attributes
    ----------
    tokens, mask : array (S, P, G, T)
        Tokens, and whether they count.
    advantages : array (S, P, G)
        Of the rewards.
    length_advantages : array (S, P, G) or None
        Of the lengths.
    """

    tokens: Integers
    mask: Flags
    advantages: Floats
    length_advantages: Floats | None = None


@dataclass(frozen=True)
class Objective:
    """Options of the loss.

    Attributes
    ----------
    loss : mapping
        Fields of :class:`g2rpo.LossOptions`.
    temperature : float
        Of the samples; the loss is that of the policy at this temperature.
    length_weight : float
        Weight of the length term.
    entropy_low, entropy_high : float
        Entropy band in nats.
    entropy_estimate : {"exact", "sampled"}
        The entropy of the distribution, or minus the log-probability of the sampled token.
    """

    loss: dict[str, Any]
    temperature: float = 1.0
    length_weight: float = 0.0
    entropy_low: float = 0.2
    entropy_high: float = 0.6
    entropy_estimate: str = "exact"


@dataclass(frozen=True)
class Gradient:
    """Gradient of the loss ``by_logits`` (S, P, T, V), with values of the same pass.

    ``entropy`` (S, K) is the mean entropy of each task's tokens in nats; ``logprobs`` (S P G, T)
    are those of the sampled tokens.
    """

    by_logits: Floats
    entropy: Floats
    logprobs: torch.Tensor


def loss_gradient(
    objective: Objective,
    logits: Floats,
    batch: Batch,
    entropy_weights: Floats | None = None,
    old_logprobs: torch.Tensor | None = None,
) -> Gradient:
    """Return the gradient of every seed's loss by its logits.

    Parameters
    ----------
    objective : Objective
        Options of the loss.
    logits : array (S, P, T, V)
        Before the temperature.
    batch : Batch
        Responses and advantages.
    entropy_weights : array (S, K), optional
        Weights of the entropy term; None for none.
    old_logprobs : tensor (S P G, T), optional
        Of the policy that sampled; by default those of ``logits``.
    """
    leaf = torch.from_numpy(logits).requires_grad_()
    logs = torch.log_softmax(leaf / objective.temperature, dim=-1)
    chosen = logs.gather(-1, torch.from_numpy(batch.tokens).transpose(2, 3)).transpose(2, 3)
    logprobs = chosen.reshape(-1, logits.shape[2])
    exact = -(logs.exp() * logs).sum(dim=-1)
    entropies = exact[:, :, None].expand(batch.tokens.shape).reshape(logprobs.shape)
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    batch_loss(objective, batch, logprobs, old, entropies, entropy_weights).backward()
    counted = batch.mask.sum(axis=2)
    sums, tokens = (
        each.reshape(len(logits), len(TASKS), -1).sum(axis=2)
        for each in (counted * exact.detach().numpy(), counted)
    )
    assert leaf.grad is not None
    return Gradient(leaf.grad.numpy(), sums / tokens, logprobs.detach())


def batch_loss(
    objective: Objective,
    batch: Batch,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    entropies: torch.Tensor,
    entropy_weights: Floats | None = None,
) -> torch.Tensor:
    """Return the sum of the losses of all seeds, by one call of :func:`g2rpo.g2rpo_loss`.

    Its means go over all seeds, and a seed's share of a mean over responses is 1 / S. A mean over
    tokens, and one over tasks, counts each token by those of all seeds; importance weights put
    its own seed's, or its own task's, in their place. In the entropy term the tasks of a seed have
    labels of their own. Token values are (S P G, T); each task has the same number of responses.
    """

    def rows(values: Any) -> torch.Tensor:
        return torch.as_tensor(values).to(logprobs.dtype).reshape(-1)

    seeds = len(batch.mask)
    mask = torch.from_numpy(batch.mask).reshape(logprobs.shape)
    options = g2rpo.LossOptions(**objective.loss).resolved()
    importance = None
    if options.aggregation in ("token", "task"):
        parts = 1 if options.aggregation == "token" else len(TASKS)
        own = mask.reshape(seeds * parts, -1).sum(dim=1).to(logprobs.dtype)
        importance = (mask.sum() / (seeds * parts * own)).repeat_interleave(len(mask) // len(own))
        importance = importance[:, None].expand(mask.shape)
        options = replace(options, aggregation="token")
    extra: dict[str, Any] = {}
    if batch.length_advantages is not None:
        extra["length_advantages"] = rows(batch.length_advantages)
    if entropy_weights is not None:
        weights = rows(entropy_weights)
        extra |= {
            "tasks": torch.arange(len(weights)).repeat_interleave(len(mask) // len(weights)),
            "entropies": -logprobs if objective.entropy_estimate == "sampled" else entropies,
            "entropy_low": torch.full_like(weights, objective.entropy_low),
            "entropy_high": torch.full_like(weights, objective.entropy_high),
            "entropy_weight": weights,
        }
    terms, _ = g2rpo.g2rpo_loss(
        logprobs,
        old_logprobs,
        rows(batch.advantages),
        mask,
        options=options,
        importance_weights=importance,
        length_weight=objective.length_weight,
        **extra,
    )
    return seeds * (terms.policy + terms.length) + terms.entropy
