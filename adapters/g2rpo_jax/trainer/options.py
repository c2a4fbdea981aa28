"""Which keys of a run's description this engine honours; it refuses the others by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from g2rpo.run.description import RunDescription, load_description
from g2rpo.run.errors import RunError

SUPPORTED = (
    "engine",
    "seed",
    "model.name",
    "model.device",
    "data.source",
    "data.tasks",
    "data.level",
    "data.split",
    "data.subset",
    "data.revision",
    "data.columns",
    "data.problem_type",
    "data.image_dir",
    "data.skip_broken",
    "data.mixing",
    "data.eval_fraction",
    "data.eval_items",
    "data.eval_generations",
    "data.eval_batch_size",
    "data.eval_temperature",
    "rollout.num_generations",
    "rollout.prompts_per_step",
    "rollout.temperature",
    "rollout.max_completion_length",
    "rollout.limits",
    "rewards",
    "estimator",
    "length",
    "entropy",
    "optimization.steps",
    "optimization.learning_rate",
    "optimization.updates_per_batch",
    "optimization.micro_batch_tokens",
    "optimization.max_skipped_steps",
    "optimization.epsilon",
    "optimization.epsilon_high",
    "optimization.dual_clip",
    "optimization.beta",
    "optimization.weight_decay",
    "optimization.max_grad_norm",
    "optimization.schedule",
    "optimization.warmup_steps",
    "optimization.min_learning_rate_ratio",
    "optimization.loss_type",
    "optimization.aggregation",
    "output.dir",
    "output.save_steps",
    "output.keep_checkpoints",
    "output.eval_steps",
    "output.trackers",
    "output.project",
    "output.completions",
    "output.show_completions_steps",
    "output.plots",
)
"""Keys, or sections as a whole, that a run of this engine follows."""


def refuse_unsupported(description: RunDescription) -> None:
    """Raise if a description sets something that this engine would have to ignore.

    A key that is not supported must have the engine's default; so a new key of the description is
    refused until it is honoured here.

    Raises
    ------
    RunError
        One line for each such key, with what to do.

    Examples
    --------
    >>> refuse_unsupported(load_description(settings=["engine=jax"]))
    >>> refuse_unsupported(load_description(settings=["engine=jax", "model.dtype=bfloat16"]))
    Traceback (most recent call last):
        ...
    g2rpo.run.errors.RunError: model.dtype is 'bfloat16', which the engine jax does not support;
    leave it at 'float32', or train with the engine reference
    """
    defaults = dict(_flat(load_description(overrides={"engine": "jax"})))
    lines = [
        f"{key} is {value!r}, which the engine jax does not support; leave it at "
        f"{defaults[key]!r}, or train with the engine reference"
        for key, value in _flat(description)
        if value != defaults[key] and not _is_supported(key)
    ]
    if lines:
        raise RunError("\n".join(lines))


def _is_supported(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in SUPPORTED)


def _flat(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
