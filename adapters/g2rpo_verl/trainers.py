"""verl's V1 trainers, with tasks: labels for the advantages, the loss's terms, metrics, state.

Importing this module registers them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.distillation import is_distillation_enabled
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, register_trainer
from verl.utils.config import omega_conf_to_dataclass

import g2rpo

from .estimators import Handover, components_of, handed_over, tasks_of
from .loss import BATCH, LENGTH, PREFIX, TASKS, task_loss
from .metrics import rollout_metrics
from .options import SECTION, read_options
from .shaping import Shaping

logger: logging.Logger = logging.getLogger(__name__)
NAME = "g2rpo_"
STATE = "g2rpo.json"


def register() -> list[str]:
    """Register a trainer with tasks for each of verl's, as ``g2rpo_`` and its name."""
    for name, base in list(TRAINER_REGISTRY.items()):
        if not name.startswith(NAME) and NAME + name not in TRAINER_REGISTRY:
            register_trainer(NAME + name)(type(f"Task{base.__name__}", (TaskTrainer, base), {}))
    return [name for name in TRAINER_REGISTRY if name.startswith(NAME)]


class TaskTrainer(PPOTrainer):
    """Adds tasks to a trainer of verl; stands before it in the bases of a class."""

    def __init__(self, config: Any) -> None:
        # verl looks at its own names.
        config.trainer.v1.trainer_mode = config.trainer.v1.trainer_mode.removeprefix(NAME)
        self._options = check_config(config)
        self._shaping = Shaping(self._options, config.data.max_response_length)
        super().__init__(config)

    def on_init_end(self) -> None:
        """Replace the loss that the actor's workers have by ours, which contains it."""
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.actor_rollout_wg.set_loss_fn(partial(task_loss, actor))
        super().on_init_end()

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        options, longest = self._options, self.config.data.max_response_length
        fields = [options.task_column, "extra_fields", "response_mask", "entropy"]
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=fields
        )
        column, extras = options.task_column, _listed(data, "extra_fields")
        rewards = [(extra or {}).get("reward_extra_info") or {} for extra in extras]
        columns = {name: [row[name] for row in rewards] for name in _common(rewards)}
        components = {
            name: values
            for name, values in columns.items()
            if name != "score" and all(isinstance(value, Real) for value in values)
        } | components_of(columns, options)
        labels = {column: _listed(data, column)} if column in data else {}
        tasks, names = tasks_of(labels, options, len(extras))
        if not options.tasks:  # and so nothing to remember: the batch has tasks of its own
            self._shaping = Shaping(options, longest, names)
        handover = Handover(self._shaping, tasks, components, batch.keys)
        with handed_over(handover):
            batch = super()._compute_advantage(batch, metrics)
        result: Any = handover.result
        rollouts, advantages, length = result
        metrics |= rollout_metrics(rollouts, advantages, names, longest)
        metrics |= self._describe_batch(tasks, names, data)
        added = {TASKS: torch.from_numpy(tasks)}
        if length is not None:
            added[LENGTH] = torch.from_numpy(length).float()
        return tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(added, batch_size=len(tasks)),
        )

    def _describe_batch(self, tasks: Any, names: Sequence[str], data: Any) -> dict[str, float]:
        """Keep the batch's totals and bounds for the loss; return the metrics of its entropies."""
        padded = data.select("response_mask", "entropy", strict=False).to_padded_tensor()
        mask, entropies = padded["response_mask"].bool(), padded.get("entropy", None)
        totals: Any = g2rpo.batch_totals(
            mask,
            entropies=None if entropies is None else entropies.float(),
            tasks=torch.from_numpy(tasks),
            num_tasks=len(names),
        )
        self._batch = {
            "names": list(names),
            "rows": len(mask),
            "task_tokens": totals.task_tokens.tolist(),
            "task_entropy": None,
            "length_weight": self._options.length.weight,
        }
        metrics: dict[str, float] = {}
        if totals.task_entropy is not None:
            means, tokens = totals.task_entropy.numpy(), totals.task_tokens.numpy()
            metrics["entropy"] = float(means @ tokens / tokens.sum())
            by_task = zip(names, means.tolist(), tokens, strict=True)
            metrics |= {f"entropy/{name}": mean for name, mean, count in by_task if count}
        shaping = self._shaping
        if shaping.options.shapes_entropy:
            shaping.adapt_entropy_weights(means, tokens > 0)
            low, high = shaping.entropy_bounds.T.tolist()
            self._batch |= {
                "task_entropy": means.tolist(),
                "entropy_low": low,
                "entropy_high": high,
                "entropy_weight": shaping.entropy_weights.tolist(),
            }
        return metrics | shaping.metrics()

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info[BATCH] = self._batch
        batch = super()._update_actor(batch, metrics)
        for key in [key for key in metrics if key.startswith(f"actor/{PREFIX}")]:
            name, _, task = key.removeprefix(f"actor/{PREFIX}").rpartition("/")
            task = self._batch["names"][int(task)] if task.isdigit() else task
            metrics[f"{name}/{task}" if name else task] = metrics.pop(key)
        return batch

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        state = json.dumps(self._shaping.state_dict())
        (folder / STATE).write_text(state, encoding="utf-8")
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if not self.global_steps:
            return
        trainer = self.config.trainer
        folder = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
        if trainer.resume_mode == "resume_path":
            folder = Path(trainer.resume_from_path)
        if (folder / STATE).exists():
            self._shaping.load_state_dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
        elif self._shaping.state_dict():
            raise FileNotFoundError(
                f"{folder} has no {STATE}, so it was not saved by a trainer of g2rpo, and what "
                f"{SECTION} remembers from step to step is lost; start with trainer.resume_mode="
                "disable from its weights, or leave out ema-grpo, entropy.control=adaptive and "
                "length.calibrate"
            )


def check_config(config: Any) -> Any:
    """Return our options; raise if the rest of verl's configuration contradicts them."""
    algorithm, actor = config.algorithm, config.actor_rollout_ref.actor
    name = str(algorithm.adv_estimator)
    if name != "g2rpo" and not name.startswith("g2rpo-"):
        raise ValueError(
            f"trainer.v1.trainer_mode={NAME}… needs algorithm.adv_estimator=g2rpo or g2rpo-<name>, "
            f"got {name!r}"
        )
    options = read_options(algorithm, name)
    if config.actor_rollout_ref.rollout.n < 2:
        raise ValueError("actor_rollout_ref.rollout.n must be 2 or more: advantages are in groups")
    if is_distillation_enabled(config.get("distillation")):
        raise ValueError("distillation has a loss of its own; turn it off, or train without g2rpo")
    if algorithm.use_kl_in_reward and options.rewards.weights:
        raise ValueError(
            f"algorithm.use_kl_in_reward changes the sum of the reward, and {SECTION}.rewards."
            "weights replaces it by components; use actor.use_kl_loss, or leave the weights out"
        )
    shapes_entropy = options.shaping(config.data.max_response_length).shapes_entropy
    bypass = (algorithm.get("rollout_correction") or {}).get("bypass_mode", False)
    if shapes_entropy and bypass:
        raise ValueError(
            "the entropy term needs the entropies that verl computes with the old "
            "log-probabilities: set algorithm.rollout_correction.bypass_mode=False, or "
            f"{SECTION}.entropy.weight=0"
        )
    if shapes_entropy and not actor.calculate_entropy:
        logger.warning(
            "actor_rollout_ref.actor.calculate_entropy is set to True for the entropy term; "
            "%s.entropy.weight=0 leaves it out",
            SECTION,
        )
        actor.calculate_entropy = True
    if options.tasks and options.shapes_length and not options.length.calibrate:
        for task in [task for task in options.tasks if task not in options.length.targets]:
            logger.warning("%s.length.targets has no %r: its length counts nothing", SECTION, task)
    return options


def _common(rewards: list[dict[str, Any]]) -> set[str]:
    return set.intersection(*map(set, rewards)) if rewards else set()


def _listed(data: Any, column: str) -> list[Any]:
    # A list, an array or a stack of tensordict's, as the queue's storage has it.
    values = data[column]
    return values.tolist() if hasattr(values, "tolist") else list(values)


register()
