"""The core's loss under tunix's signature, and its metrics as tunix wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import common
from tunix.rl.function_registry import register_policy_loss_fn

from g2rpo import LossTerms, batch_totals, entropy_from_logits, g2rpo_loss

from .config import G2RPOConfig
from .example import G2RPOExample

_TERMS = ("policy", "length", "entropy", "kl")
_RATIOS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "ratio/mean")


def logged_metrics(tasks: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return what the loss reports: name -> how the values of the micro-batches are combined.

    Every value is a micro-batch's contribution to the mini-batch's, so all but the largest ratio
    add up.
    """
    names = [f"loss/{term}" for term in _TERMS]
    names += [*_RATIOS, "pg_clipfrac", "kl", "entropy"]
    names += [f"{name}/{task}" for name in (*_RATIOS, "kl", "entropy") for task in tasks]
    largest = ["ratio/max", *(f"ratio/max/{task}" for task in tasks)]
    return dict.fromkeys(names, np.sum) | dict.fromkeys(largest, np.max)


def token_statistics(
    graphdef: Any,
    state: Any,
    example: Any,
    *,
    pad_id: int,
    eos_id: int,
    temperature: float,
    stop_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return the log-probability and exact entropy (B, T) of every token, float32, in nats."""
    logprobs, logits = common.compute_per_token_logps(
        graphdef,
        state,
        prompt_tokens=example.prompt_ids,
        completion_tokens=example.completion_ids,
        pad_id=pad_id,
        eos_id=eos_id,
        stop_gradient=stop_gradient,
        return_logits=True,
        temperature=temperature,
    )
    entropies = entropy_from_logits(logits.astype(jnp.float32))
    return logprobs.astype(jnp.float32), entropies


@register_policy_loss_fn("g2rpo")
def g2rpo_policy_loss(
    model: nnx.Module,
    train_example: Any,
    algo_config: G2RPOConfig,
    pad_id: int,
    eos_id: int,
    **_: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of one micro-batch and its metrics.

    tunix averages the gradients of a mini-batch's micro-batches, so each is scaled by their number:
    the average is then the gradient of the whole mini-batch, in which every token counts alike.
    """
    if not isinstance(algo_config, G2RPOConfig):
        raise TypeError(
            "the policy loss 'g2rpo' needs a G2RPOConfig, got " + type(algo_config).__name__
        )
    _check_fields(train_example, algo_config)
    definition, state = nnx.split(model)
    logprobs, entropies = token_statistics(
        definition,
        state,
        train_example,
        pad_id=pad_id,
        eos_id=eos_id,
        temperature=algo_config.temperature,
    )
    terms, ratios = _terms(logprobs, entropies, train_example, algo_config)
    metrics = _contributions(terms, ratios, entropies, train_example, algo_config)
    slices = getattr(train_example, "slices", None)
    parts = 1.0 if slices is None else slices.parts[0]
    return parts * terms.total, metrics


def _check_fields(example: Any, config: G2RPOConfig) -> None:
    shaped = config.shapes_entropy or config.length_mode == "term"
    if shaped and not isinstance(example, G2RPOExample):
        raise TypeError(
            "the entropy and length terms need G2RPOLearner; with tunix's own learner set "
            "entropy_weight=0 and length_mode='off'"
        )


def _terms(
    logprobs: jax.Array, entropies: jax.Array, example: Any, config: G2RPOConfig
) -> tuple[LossTerms, dict[str, jax.Array]]:
    old = example.old_per_token_logps
    slices = getattr(example, "slices", None)
    tasks = getattr(example, "tasks", None)
    options: dict[str, Any] = {}
    if tasks is not None:
        options = {"tasks": tasks, "num_tasks": len(config.task_names)}
    if (weights := getattr(example, "entropy_weights", None)) is not None:
        bounds = jnp.asarray(config.bounds, dtype=entropies.dtype)
        options |= {
            "entropies": entropies,
            "entropy_low": bounds[:, 0],
            "entropy_high": bounds[:, 1],
            "entropy_weight": weights[0].astype(entropies.dtype),
        }
    return g2rpo_loss(
        logprobs,
        jax.lax.stop_gradient(logprobs) if old is None else old.astype(logprobs.dtype),
        example.advantages.astype(logprobs.dtype),
        example.completion_mask.astype(bool),
        length_advantages=getattr(example, "length_advantages", None),
        length_weight=config.length_weight,
        ref_logprobs=example.ref_per_token_logps,
        beta=config.beta,
        totals=None if slices is None else slices.totals(),
        options=config.loss_options(example.completion_ids.shape[1]),
        **options,
    )


def _contributions(
    terms: LossTerms,
    ratios: dict[str, jax.Array],
    entropies: jax.Array,
    example: Any,
    config: G2RPOConfig,
) -> dict[str, jax.Array]:
    """Return this micro-batch's part of each of the mini-batch's metrics."""
    names = config.task_names
    mask = example.completion_mask.astype(bool)
    tasks = getattr(example, "tasks", None)
    if tasks is None:
        tasks = jnp.zeros(mask.shape[0], dtype=jnp.int32)
    here: Any = batch_totals(mask, entropies=entropies, tasks=tasks, num_tasks=len(names))
    slices = getattr(example, "slices", None)
    everywhere: Any = here if slices is None else slices.totals()
    share = here.tokens / jnp.maximum(everywhere.tokens, 1.0)
    metrics = {f"loss/{name}": getattr(terms, name) for name in _TERMS}
    # A loss type that clips nothing reports no clip ratios.
    metrics |= {name: share * ratios.get(name, jnp.float32(0.0)) for name in _RATIOS}
    metrics["pg_clipfrac"] = metrics["clip_ratio/region_mean"]
    metrics["ratio/max"] = ratios["ratio/max"]
    metrics["kl"] = share * ratios.get("kl", jnp.float32(0.0))
    summed = here.task_entropy * here.task_tokens
    metrics["entropy"] = jnp.sum(summed) / jnp.maximum(everywhere.tokens, 1.0)
    # A task that the mini-batch lacks has no values: gaps in its curves, not 0.
    present = everywhere.task_tokens > 0
    missing = jnp.full_like(summed, jnp.nan)
    of_tasks = {"entropy": summed / jnp.where(present, everywhere.task_tokens, 1.0)}
    of_tasks |= {name: ratios.get(f"tasks/{name}", missing) for name in (*_RATIOS, "ratio/max")}
    of_tasks["kl"] = ratios.get("tasks/kl", jnp.zeros_like(summed))
    for name, values in of_tasks.items():
        values = jnp.where(present, values, jnp.nan)
        metrics |= {f"{name}/{task}": values[number] for number, task in enumerate(config.tasks)}
    return jax.lax.stop_gradient(metrics)
