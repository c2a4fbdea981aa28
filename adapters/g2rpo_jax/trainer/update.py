"""Change the policy: mini-batches of whole prompts, each one optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy.typing as npt
from flax import nnx
from jax import Array

import g2rpo
from g2rpo.run.description import RunDescription
from g2rpo.run.update_metrics import Update
from g2rpo_jax.policy.decoder import Decoder, Params
from g2rpo_jax.policy.reading import Prompts

from .forward import completion_logprobs
from .optimizer import AdamW
from .policy_model import Policy


class Batch(NamedTuple):
    """G rollouts to each of P prompts, with all that the loss needs.

    Attributes
    ----------
    prompts : Prompts
        P prompts.
    tokens, mask, logprobs, entropies : Array (P, G, T)
        As sampled, see :class:`~g2rpo_jax.trainer.rollout.Completions`.
    advantages : Array (P, G)
        Of the rewards.
    length_advantages : Array (P, G) or None
        Of the length rewards.
    tasks : Array (P, G), int32
        Number of each rollout's task.
    ref_logprobs : Array (P, G, T) or None
        Log-probabilities under the reference policy, where there is a KL term.
    """

    prompts: Prompts
    tokens: Array
    mask: Array
    logprobs: Array
    entropies: Array
    advantages: Array
    length_advantages: Array | None
    tasks: Array
    ref_logprobs: Array | None = None

    def rows(self, prompts: npt.ArrayLike) -> Batch:
        """Return the prompts of the given numbers alone, with their rollouts."""
        rows = jnp.asarray(prompts)
        return jax.tree.map(lambda values: values[rows], self)

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the prompts in parts of at most ``size``."""
        for start in range(0, self.tokens.shape[0], size):
            rows = slice(start, start + size)
            yield jax.tree.map(lambda values, rows=rows: values[rows], self)


class Trained(NamedTuple):
    """What an update changes: the policy, and the moments of its optimiser."""

    policy: Policy
    moments: Any


class Terms(NamedTuple):
    """What of a run's description is compiled into the loss, all of it hashable."""

    temperature: float
    length_weight: float
    beta: float
    epsilon: float
    epsilon_high: float
    dual_clip: float | None
    loss_type: str
    aggregation: str
    max_completion_length: int | None

    @classmethod
    def of(cls, description: RunDescription) -> Terms:
        """Read them from a description."""
        options, rollout = description.optimization, description.rollout
        is_constant = options.aggregation == "constant"
        return cls(
            temperature=rollout.temperature,
            length_weight=description.length.weight,
            beta=options.beta,
            epsilon=options.epsilon,
            epsilon_high=options.epsilon_high,
            dual_clip=options.dual_clip,
            loss_type=options.loss_type,
            aggregation=options.aggregation,
            max_completion_length=rollout.max_completion_length if is_constant else None,
        )


class Bounds(NamedTuple):
    """Each task's entropy bounds in nats and the weight of its term, (num_tasks,) float32."""

    low: Array
    high: Array
    weight: Array

    @classmethod
    def of(cls, description: RunDescription) -> Bounds:
        """Read them from a description."""
        entropy, tasks = description.entropy, description.data.tasks
        rows = [(*entropy.of(task), entropy.weight_of(task)) for task in tasks]
        return cls(*jnp.asarray(rows, jnp.float32).T)


def update_policy(
    trained: Trained, batch: Batch, description: RunDescription, learning_rate: float
) -> tuple[Trained, list[Update]]:
    """Take ``updates_per_batch`` optimiser steps on a batch of rollouts.

    Parameters
    ----------
    trained : Trained
        Before the updates.
    batch : Batch
        The rollouts.
    description : RunDescription
        Its rollout, length, entropy and optimization sections.
    learning_rate : float
        Of this step.

    Returns
    -------
    trained : Trained
        After the updates.
    updates : list of Update
        Loss terms, clip ratios and gradient norm of each; ratios and distances also by task.
    """
    prompts = batch.tokens.shape[0]
    updates = []
    for part in batch.split(-(-prompts // description.optimization.updates_per_batch)):
        trained, update = _update(trained, part, description, learning_rate)
        updates.append(update)
    return trained, updates


def _update(
    trained: Trained, batch: Batch, description: RunDescription, learning_rate: float
) -> tuple[Trained, Update]:
    """Compute the gradient of one mini-batch, clip it, and step."""
    # Each task's side of the band is judged on the entropies that the mini-batch was sampled with,
    # so that every micro-batch pulls the same way without a pass of its own.
    totals = batch_totals(batch, num_tasks=len(description.data.tasks))
    policy = trained.policy
    gradient, metrics = accumulate_gradient(policy, batch, totals, description)
    params, moments, norm = AdamW.of(description.optimization).step(
        policy.params, trained.moments, gradient, learning_rate
    )
    # The device is asked once, not for every number.
    reported, tokens = jax.device_get(({**metrics, "grad_norm": norm}, totals.task_tokens))
    return Trained(policy.with_params(params), moments), Update(reported, tokens)


def accumulate_gradient(
    policy: Policy, batch: Batch, totals: g2rpo.BatchTotals, description: RunDescription
) -> tuple[Params, dict[str, Array]]:
    """Add up the gradients of micro-batches of whole prompts.

    Parameters
    ----------
    policy : Policy
        Whose gradient it is.
    batch : Batch
        A mini-batch, or a part of one.
    totals : BatchTotals
        Of the mini-batch.
    description : RunDescription
        Its rollout, length, entropy and optimization sections.

    Returns
    -------
    gradient : Params
        Of the part's share of the loss.
    metrics : dict of str to Array
        Of the part, under the names of :func:`g2rpo.g2rpo_loss` and ``loss/`` with each term.
    """
    terms, bounds, found = Terms.of(description), Bounds.of(description), []
    for part in batch.split(_prompts_at_once(batch, description)):
        part = policy.placement.divided(part)
        found.append(
            loss_gradient(
                policy.definition, policy.params, policy.head_bias, part, totals, bounds, terms
            )
        )
    gradient = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *(each[0] for each in found))
    metrics = {name: _gathered(name, [each[1][name] for each in found]) for name in found[0][1]}
    return gradient, metrics


def _prompts_at_once(batch: Batch, description: RunDescription) -> int:
    _, group, length = batch.tokens.shape
    tokens_each = batch.prompts.tokens.shape[1] + group * length
    return max(1, description.optimization.micro_batch_tokens // tokens_each)


def _gathered(name: str, parts: list[Array]) -> Array:
    # Shares of micro-batches add up, maxima do not.
    return jnp.max(jnp.stack(parts), axis=0) if name.endswith("/max") else sum(parts[1:], parts[0])


@partial(jax.jit, static_argnames="num_tasks")
def batch_totals(batch: Batch, *, num_tasks: int) -> g2rpo.BatchTotals:
    """Return what the loss of each part of a mini-batch has to know of the whole."""
    rows = (-1, batch.tokens.shape[-1])
    return g2rpo.batch_totals(
        batch.mask.reshape(rows),
        entropies=batch.entropies.reshape(rows),
        tasks=batch.tasks.reshape(-1),
        num_tasks=num_tasks,
    )


@partial(jax.jit, static_argnames=("definition", "terms"))
def loss_gradient(
    definition: nnx.GraphDef[Decoder],
    params: Params,
    head_bias: Array,
    batch: Batch,
    totals: g2rpo.BatchTotals,
    bounds: Bounds,
    terms: Terms,
) -> tuple[Params, dict[str, Array]]:
    """Return the gradient of a part's share of the loss, and that share with other metrics."""
    gradient, metrics = jax.grad(_loss, argnums=1, has_aux=True)(
        definition, params, head_bias, batch, totals, bounds, terms
    )
    return gradient, metrics


def _loss(
    definition: nnx.GraphDef[Decoder],
    params: Params,
    head_bias: Array,
    batch: Batch,
    totals: g2rpo.BatchTotals,
    bounds: Bounds,
    terms: Terms,
) -> tuple[Array, dict[str, Array]]:
    logprobs, entropies = completion_logprobs(
        definition,
        params,
        head_bias,
        batch.prompts,
        batch.tokens,
        batch.mask,
        temperature=terms.temperature,
    )
    rows = (-1, batch.tokens.shape[-1])
    # The loss takes rollouts (N, T) and (N,), whatever prompt they answer.
    flat = batch._replace(
        **jax.tree.map(
            lambda values: values.reshape(rows if values.ndim == 3 else -1),
            {name: values for name, values in batch._asdict().items() if name != "prompts"},
        )
    )
    options = terms._asdict()
    del options["temperature"]
    losses, metrics = g2rpo.g2rpo_loss(
        logprobs.reshape(rows),
        flat.logprobs,
        flat.advantages,
        flat.mask,
        entropies=entropies.reshape(rows),
        tasks=flat.tasks,
        num_tasks=bounds.low.shape[0],
        entropy_low=bounds.low,
        entropy_high=bounds.high,
        entropy_weight=bounds.weight,
        length_advantages=flat.length_advantages,
        ref_logprobs=flat.ref_logprobs,
        totals=totals,
        **options,
    )
    # Loss terms of micro-batches add up, and so do the shares of tasks; the other metrics are means
    # over the part's tokens, or maxima.
    share = jnp.sum(flat.mask, dtype=jnp.float32) / totals.tokens
    reported = {f"loss/{name}": term for name, term in losses._asdict().items()}
    for name, value in metrics.items():
        is_mean = not name.endswith("/max") and not name.startswith("tasks/")
        reported[name] = share * value if is_mean else value
    return losses.total, reported
