"""tunix's cluster for one process: actor and vanilla rollout share the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType
from tunix.rl.rl_cluster import ClusterConfig, Mode, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.checkpoint_manager import CheckpointManager

from g2rpo.run.description import RunDescription
from g2rpo.run.schedule import learning_rate_factor
from g2rpo.run.sections import Optimization
from g2rpo_jax.trainer.device import resolve_device

from ..sampled import observe_rollouts
from .policy import Policy, load_policy

# tunix gives its folder this name.
_ACTOR = "actor"


def make_mesh(device: str) -> jax.sharding.Mesh:
    """Return a mesh of all devices that a run's description names."""
    devices = resolve_device(device).devices
    return jax.make_mesh(
        (len(devices), 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def make_cluster(
    description: RunDescription,
    policy: Policy,
    mesh: jax.sharding.Mesh,
    longest_prompt: int,
    start: Path | None,
) -> RLCluster:
    """Return the cluster of a run.

    Parameters
    ----------
    description : RunDescription
        The run.
    policy : Policy
        What is trained, if there is no checkpoint to go on from.
    mesh : jax.sharding.Mesh
        Where it runs.
    longest_prompt : int
        In tokens.
    start : Path, optional
        Checkpoint to go on from.
    """
    rollout, options = description.rollout, description.optimization
    prompts = rollout.prompts_per_step
    longest = longest_prompt + rollout.max_completion_length
    each = rollout.num_generations
    micro = divisor(prompts, options.micro_batch_tokens // (each * longest))
    sampled = divisor(prompts, (rollout.batch_size or prompts * each) // each)
    sampling = [
        RolloutConfig(
            max_tokens_to_generate=rollout.max_completion_length,
            max_prompt_length=longest_prompt,
            kv_cache_size=longest,
            temperature=rollout.temperature,
            top_p=1.0,
        )
        for _ in range(2)
    ]
    training = RLTrainingConfig(
        eval_every_n_steps=options.steps,
        max_steps=options.steps,
        mini_batch_size=prompts,
        train_micro_batch_size=micro,
        rollout_micro_batch_size=sampled,
        compute_logps_micro_batch_size=micro,
        actor_optimizer=make_optimizer(options),
        # Read from here; a run's folder is written to elsewhere.
        checkpoint_root_directory=None if start is None else str(start.absolute()),
    )
    reference = None
    if options.beta:
        reference = load_policy(description.model.name, mesh, description.model.dtype).model
    cluster = RLCluster(
        actor=policy.model,
        reference=reference,
        tokenizer=policy.tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.ROLLOUT, Role.REFERENCE), mesh),
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=dict(zip((Mode.TRAIN, Mode.EVAL), sampling, strict=True)),
        ),
    )
    observe_rollouts(cluster)
    cluster.actor_trainer.checkpoint_manager.close()
    cluster.actor_trainer.checkpoint_manager = CheckpointManager()
    return cluster


def make_optimizer(options: Optimization) -> optax.GradientTransformation:
    """Return AdamW behind a clipped gradient; one that is not finite costs its update."""
    rates = jnp.asarray(
        [options.learning_rate * learning_rate_factor(options, s) for s in range(options.steps)]
    )
    adamw = optax.adamw(
        lambda count: rates[jnp.minimum(count, options.steps - 1)],
        weight_decay=options.weight_decay,
    )
    chain = optax.chain(optax.clip_by_global_norm(options.max_grad_norm), adamw)
    return optax.apply_if_finite(chain, max_consecutive_errors=2**31 - 1)


def holds_actor(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint, from which tunix's actor can be restored."""
    return (folder / _ACTOR).is_dir()


def save_actor(folder: Path, cluster: Any) -> None:
    """Write what tunix's actor is restored from into a folder."""
    trainer = cluster.actor_trainer
    manager = CheckpointManager(str((folder / _ACTOR).absolute()))
    manager.save(
        trainer.train_steps,
        trainer.model,
        trainer.optimizer,
        force=True,
        custom_metadata=trainer.custom_checkpoint_metadata(),
    )
    manager.close()


def divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is not above the limit; 1 at least.

    Examples
    --------
    >>> divisor(24, 10), divisor(24, 0)
    (8, 1)
    """
    return max((d for d in range(1, number + 1) if number % d == 0 and d <= limit), default=1)
