"""tunix's GRPO learner with tasks: advantages, entropy and length over the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from tunix.rl import utils as rl_utils
from tunix.rl.grpo.grpo_learner import GRPOLearner
from tunix.rl.rl_cluster import Mode, Role

from g2rpo import batch_totals

from .checkpoint import keep_state
from .config import G2RPOConfig
from .datasets import Checked
from .estimate import prompt_numbers
from .example import G2RPOExample, Slices
from .handover import handover
from .loss import logged_metrics, token_statistics
from .metrics import rollout_metrics
from .reward_manager import TaskRewardManager
from .sampled import observe_rollouts
from .seeds import seed_of

# The names above register themselves with tunix.
from . import registry as _registry  # noqa: F401  # isort: skip

_token_statistics = jax.jit(
    token_statistics, static_argnames=("pad_id", "eos_id", "temperature", "stop_gradient")
)


class G2RPOLearner(GRPOLearner[G2RPOConfig]):
    """tunix's ``GRPOLearner`` with G²RPO's advantages, entropy and length terms.

    Statistics of groups and tasks are those of all rollouts of a mini-batch, however they are cut
    into micro-batches for sampling and for the gradient. What an estimator remembers is saved in
    tunix's checkpoints and read back from them. Evaluation changes nothing.

    Parameters
    ----------
    rl_cluster : tunix.rl.rl_cluster.RLCluster
        With meshes of automatic axes and without sequence packing.
    algo_config : G2RPOConfig
        Tasks, estimator and shaping.
    reward_fns : callable or list of callable
        As tunix calls them; NaN where one does not apply.
    metric_fns, data_shuffle_seed
        As in tunix.

    Raises
    ------
    TypeError
        If ``algo_config`` is no ``G2RPOConfig``.
    ValueError
        If the cluster packs sequences or has other axes, or an option names what there is not.

    Notes
    -----
    ``rollout_micro_batch_size`` sets how many prompts are sampled at once, and nothing else.

    The vanilla rollout's responses get their end token back, which tunix cuts off: it counts in
    lengths, and the update learns when to stop.

    With ``gradient_accumulation_steps`` above 1 the policy is run once more, without gradient, to
    judge each task's side of its entropy band on the whole mini-batch.
    """

    def __init__(
        self,
        rl_cluster: Any,
        algo_config: G2RPOConfig,
        reward_fns: Any,
        metric_fns: Sequence[Any] | None = None,
        data_shuffle_seed: int | None = None,
    ) -> None:
        if not isinstance(algo_config, G2RPOConfig):
            raise TypeError(f"algo_config must be a G2RPOConfig, got {type(algo_config).__name__}")
        check_cluster(rl_cluster)
        super().__init__(rl_cluster, algo_config, reward_fns, metric_fns, data_shuffle_seed)
        shaping = getattr(self.reward_manager, "shaping", None)
        if not isinstance(self.reward_manager, TaskRewardManager) or shaping is None:
            raise ValueError(
                "reward_manager must be 'g2rpo' or a subclass of TaskRewardManager, "
                f"got {algo_config.reward_manager!r}"
            )
        self._shaping = shaping
        keep_state(rl_cluster, shaping)
        rl_cluster.actor_trainer.with_rl_metrics_to_log(logged_metrics(algo_config.tasks))
        observe_rollouts(rl_cluster)

    def train(
        self,
        train_ds: Iterable[Any],
        eval_ds: Iterable[Any] | None = None,
        skip_jit: bool = False,
    ) -> None:
        """Train on batches of columns, all of them NumPy arrays (P,), one of them ``prompts``.

        Raises
        ------
        TypeError
            If a column is no array.
        ValueError
            If a column has another length than ``prompts``, or that of the tasks is missing or
            holds an unknown label.
        """
        config = self.algo_config
        checked = None if eval_ds is None else Checked(eval_ds, config)
        super().train(Checked(train_ds, config), checked, skip_jit)

    def _run_global_step(
        self, full_batch_size: int, mini_batch_size: int, _: int, *args: Any
    ) -> None:
        # The size given is the smallest that tunix's services can share, and that many prompts
        # would get advantages among themselves.
        super()._run_global_step(full_batch_size, mini_batch_size, mini_batch_size, *args)

    def _generate_and_compute_advantage(
        self, training_input: Any, mode: Any = Mode.TRAIN
    ) -> G2RPOExample:
        self._set_sampling_seed(mode)
        example = super()._generate_and_compute_advantage(training_input, mode)
        advantages, rewards, tasks = handover.result
        handover.result = None
        mask = np.asarray(example.completion_mask, dtype=bool)
        codes = np.zeros(len(mask), dtype=np.int64) if tasks is None else tasks
        length, slices, old = advantages.length, None, example.old_per_token_logps
        parts, iterates = self._parts, self.algo_config.num_iterations > 1
        adapts = self.algo_config.entropy_control == "adaptive"
        if mode == Mode.TRAIN and (parts > 1 or iterates or adapts):
            logprobs, entropies = self._sampled_statistics(example)
            if iterates:
                # tunix's own are those of temperature 1, whatever was sampled with.
                old = logprobs
            totals = batch_totals(
                jnp.asarray(mask),
                entropies=entropies,
                tasks=jnp.asarray(codes, dtype=jnp.int32),
                num_tasks=len(self.algo_config.task_names),
            )
            slices = Slices.of(totals, parts=parts, size=len(mask)) if parts > 1 else None
            if adapts:
                means, tokens = map(np.asarray, (totals.task_entropy, totals.task_tokens))
                self._shaping.adapt_entropy_weights(means, tokens > 0)
        self._log_rollouts(example, rewards, tasks, mode)
        given = {field.name: getattr(example, field.name) for field in fields(example)}
        return G2RPOExample(
            **given | {"old_per_token_logps": old},
            tasks=jnp.asarray(codes, dtype=jnp.int32),
            length_advantages=None if length is None else jax.device_put(length),
            entropy_weights=self._entropy_weights(len(mask)),
            slices=slices,
        )

    def _entropy_weights(self, size: int) -> jax.Array | None:
        """Return the weights of the entropy terms, (size, num_tasks), or None without a term."""
        if not self._shaping.options.shapes_entropy:
            return None
        row = jnp.asarray(self._shaping.entropy_weights, dtype=jnp.float32)
        return jnp.broadcast_to(row, (size, len(row)))

    @property
    def _parts(self) -> int:
        """The number of micro-batches in a mini-batch."""
        return int(self._training_config.get_with_default("gradient_accumulation_steps", 1))

    def _set_sampling_seed(self, mode: Any) -> None:
        seed = self.algo_config.sampling_seed
        if seed is None:
            return
        # Counted in mini-batches of data, so that a resumed run draws what it would have drawn;
        # evaluation draws the same in every round.
        training = mode == Mode.TRAIN
        place = self._iter_steps // self._parts if training else self._eval_iter_steps
        config = self.rl_cluster.get_rollout_config(mode=mode)
        config.seed = seed_of(seed, int(training), place)

    def _sampled_statistics(self, example: Any) -> tuple[jax.Array, jax.Array]:
        """Return log-probabilities and entropies (N, T) under the policy that was sampled."""
        cluster = self.rl_cluster
        graphdef, state = nnx.split(cluster.actor_trainer.model)
        if self.should_sync_weights:
            # Rollouts run ahead of the updates: the snapshot that they were sampled with.
            state = cluster._anchor_policy_state
        step = self._compute_logps_micro_batch_size * self.algo_config.num_generations
        rows = len(example.completion_ids)
        with cluster._get_mesh_and_logical_axis_rules_cm(Role.ACTOR):
            parts = [
                _token_statistics(
                    graphdef,
                    state,
                    rl_utils.get_batch_slice(example, part),
                    pad_id=cluster.rollout.pad_id(),
                    eos_id=cluster.rollout.eos_id(),
                    temperature=self.algo_config.temperature,
                    stop_gradient=True,
                )
                for part in rl_utils.chunk_slices_by_size(stop=rows, step=step)
            ]
        logprobs, entropies = (jnp.concatenate(each) for each in zip(*parts, strict=True))
        return logprobs, entropies

    def _log_rollouts(self, example: Any, rewards: Any, tasks: Any, mode: Any) -> None:
        mask = np.asarray(example.completion_mask, dtype=bool)
        last = np.asarray(example.completion_ids)[:, -1]
        ends = self.rl_cluster.get_rollout_config(mode=mode).eos_tokens
        ended = np.isin(last, ends or [self.rl_cluster.rollout.eos_id()])
        metrics = rollout_metrics(
            rewards,
            mask.sum(axis=1),
            mask[:, -1] & ~ended,
            prompt_numbers(len(rewards), self.algo_config.num_generations),
            tasks,
            self.algo_config.tasks,
        )
        # tunix logs the lengths over all rollouts under these names itself.
        for name in ("mean", "min", "max"):
            metrics.pop(f"completions/{name}_length")
        if mode == Mode.TRAIN:
            metrics |= {name: (value, np.mean) for name, value in self._shaping.metrics().items()}
        self.rl_cluster.buffer_metrics(metrics, mode=mode)


def check_cluster(cluster: Any) -> None:
    """Raise if the cluster is set up in a way that fails late, or loses labels in silence."""
    if cluster.cluster_config.training_config.max_seq_token_per_tpu is not None:
        raise ValueError(
            "max_seq_token_per_tpu must be None: tunix's sequence packing drops the task labels, "
            f"got {cluster.cluster_config.training_config.max_seq_token_per_tpu}"
        )
    for role, mesh in cluster.cluster_config.role_to_mesh.items():
        if any(kind != AxisType.Auto for kind in mesh.axis_types):
            raise ValueError(
                f"the mesh of {role} must have axes of type AxisType.Auto, got {mesh.axis_types}; "
                "pass axis_types to jax.make_mesh"
            )
