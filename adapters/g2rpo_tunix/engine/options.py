"""Which keys of a run's description this engine honours, and what tunix calls them."""

from __future__ import annotations

from g2rpo.run.description import RunDescription
from g2rpo.run.scoring import reward_weights

from ..config import G2RPOConfig

SUPPORTED = (
    "engine",
    "seed",
    "model.name",
    "model.device",
    "model.dtype",
    "data",
    "rewards",
    "rollout.num_generations",
    "rollout.prompts_per_step",
    "rollout.temperature",
    "rollout.max_prompt_length",
    "rollout.max_completion_length",
    "rollout.batch_size",
    "estimator",
    "length.mode",
    "length.weight",
    "length.only_right",
    "length.targets",
    "entropy.weight",
    "entropy.weights",
    "entropy.low",
    "entropy.high",
    "entropy.bounds",
    "optimization.steps",
    "optimization.learning_rate",
    "optimization.micro_batch_tokens",
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


def learner_config(description: RunDescription) -> G2RPOConfig:
    """Return the learner's configuration; the description's tasks are named."""
    tasks, rollout = description.data.tasks, description.rollout
    estimator, length, entropy = description.estimator, description.length, description.entropy
    options = description.optimization
    targets = {
        task: target.thresholds
        for task in tasks
        if (target := length.target_of(task, rollout.max_completion_length))
    }
    mode = length.mode if targets else "off"
    # Other estimators have no use for what the description says of Gaussian matching.
    gaussian = estimator.model_dump(exclude={"name"}) if estimator.name == "gaussian" else {}
    return G2RPOConfig(
        tasks=tasks,
        num_generations=rollout.num_generations,
        estimator=estimator.name,
        estimator_options=gaussian,
        reward_weights=tuple(reward_weights(description)),
        entropy_weight=entropy.weight,
        task_entropy_weights={task: entropy.weight_of(task) for task in tasks},
        task_entropy_bounds={task: entropy.of(task) for task in tasks},
        length_mode=mode,
        length_weight=length.weight,
        length_targets=targets if mode != "off" else {},
        length_only_right="accuracy" if length.only_right and mode != "off" else None,
        epsilon=options.epsilon,
        epsilon_high=options.epsilon_high,
        dual_clip=options.dual_clip,
        loss_type=options.loss_type,
        aggregation=options.aggregation,
        beta=options.beta,
        sampling_seed=description.seed,
    )
