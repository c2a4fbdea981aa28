"""A run as a script of TRL: what becomes of each key."""

from __future__ import annotations

import math
from typing import Any

from g2rpo import LossOptions
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.scoring import reward_weights

from .keys import (
    Export,
    Fate,
    Rule,
    carried,
    held,
    lost,
    lost_unless,
    of_tasks,
    option,
    spare,
    when,
)
from .shared import (
    CLIPPED,
    SHARED,
    calibration,
    floor,
    is_gaussian,
    loss_of,
    number_of_loss,
    shaping,
    uses_vllm,
    vllm_memory,
)
from .trl_script import script_of, updates_of

_BATCH = "train.py: `per_device_train_batch_size`, `gradient_accumulation_steps`"
_LAUNCH = "say it to `accelerate launch`"
_REWARDS = held("train.py: `RecordRewards`")
_LORA = when(lambda c: c.model.lora.rank, held("train.py: `LoraConfig`"), "model.lora.rank is 0")


def _updates_per_batch(value: int, config: TrainConfig) -> Fate:
    if (found := updates_of(config)) == value:
        return Fate("carried", _BATCH)
    prompts = config.rollout.prompts_per_step
    text = (
        f"TRL's updates are of one size, and {prompts} prompts make no {value}; {found} are taken"
    )
    return Fate("not carried", text)


def _in_updates(name: str) -> Rule:
    """Return the rule of a number of steps: TRL counts optimiser updates."""
    return option(
        name,
        to=lambda value, c: value if 0 < value < 1 else int(value) * updates_of(c),
        note=", in optimiser updates",
    )


def _device(value: str, config: TrainConfig) -> Fate:
    if value == "cpu":
        return carried({"use_cpu": True})
    if value in ("auto", "cuda"):
        return Fate("not needed", "TRL takes the GPU if there is one")
    return Fate("not carried", f"name the device by CUDA_VISIBLE_DEVICES, or {_LAUNCH}")


def _dtype(value: str, config: TrainConfig) -> Fate:
    is_narrow = value == "bfloat16" or (value == "auto" and config.model.device != "cpu")
    options = {"bf16": is_narrow, "model_init_kwargs.dtype": "float32"}
    note = ": computed in bfloat16 over float32 weights, which are the masters"
    return carried(options, note if is_narrow else "")


def _importance(value: str, config: TrainConfig) -> Fate:
    if value == "off":
        return carried({"vllm_importance_sampling_correction": False})
    grain, _, bound = value.partition("_")
    if grain == "geometric" or bound == "reject":
        return Fate("not carried", "TRL has no such mode; its own default is taken")
    return carried({"vllm_importance_sampling_mode": value})


def _estimator(value: str, config: TrainConfig) -> Fate:
    given = config.estimator
    names = ("task_stage", "ties", "resolution", "decoupled")
    gaussian = {name: getattr(given, name) for name in names}
    options = gaussian if value == "gaussian" else dict(given.options)
    return carried({"estimator": value} | ({"estimator_options": options} if options else {}))


def _only_right(value: bool, config: TrainConfig) -> Fate:
    if value:
        return carried({"length_only_right": "accuracy"})
    if not config.length.calibrate:
        return Fate("carried", "`length_only_right`: none")
    text = "lengths that calibrate and that are rewarded are of the same responses, the right ones"
    return Fate("not carried", text, {"length_only_right": "accuracy"})


def _control(value: str, config: TrainConfig) -> Fate:
    is_finer = value == "adaptive" and updates_of(config) > 1
    note = "; weights change with every optimiser update, and not once a step"
    return carried({"entropy_control": value}, note if is_finer else "")


def _loss_type(value: str, config: TrainConfig) -> Fate:
    by_mean = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo", "task": "dapo"}
    found = by_mean[str(loss_of(config).aggregation)]
    if value in CLIPPED:
        return carried({"loss_type": found})
    if value == "gspo":
        return carried({"loss_type": found, "importance_sampling_level": "sequence"})
    if value in ("cispo", "sapo"):
        return carried({"loss_type": value})
    return Fate("not carried", f"TRL has no such loss; {found!r} is taken", {"loss_type": found})


def _aggregation(value: str | None, config: TrainConfig) -> Fate:
    loss = loss_of(config)
    own = {"cispo": "token", "sapo": "sequence"}.get(loss.loss_type, loss.aggregation)
    if loss.aggregation == own and own != "task":
        return Fate("carried", "`loss_type`")
    return Fate("not carried", "TRL averages this loss in its own way, over tokens or sequences")


def _number(name: str, ours: str) -> Rule:
    def fate_of(found: float, loss: LossOptions) -> Fate:
        if math.isinf(found):
            return Fate("not needed", "is never")
        if loss.loss_type == "cispo" and ours == "epsilon":
            no_bound = Fate("not needed", "is no bound")
            return no_bound if found >= 1 else Fate("not carried", "cispo has no lower bound there")
        # TRL's upper bound of cispo is the ratio itself.
        return carried({name: found + (loss.loss_type == "cispo")})

    return number_of_loss(ours, fate_of)


def _masking(value: str, config: TrainConfig) -> Fate:
    options = {"mask_truncated_completions": value != "off"}
    if value != "all":
        return carried(options)
    text = "TRL leaves them out of the loss, not out of the statistics of the advantages"
    return Fate("not carried", text, options)


def _quantile(value: float, config: TrainConfig) -> Fate:
    options = {"top_entropy_quantile": value}
    if value == 1:
        return carried(options)
    return Fate("not carried", "TRL takes the tokens of all tasks together, not of each", options)


def _kl(value: str, config: TrainConfig) -> Fate:
    options = {"use_bias_correction_kl": value == "k3-weighted"}
    if value in ("k3", "k3-weighted"):
        return carried(options)
    return Fate("not carried", "TRL has k3, which is taken, and k3-weighted", options)


def _schedule(value: str, config: TrainConfig) -> Fate:
    floor = config.optimization.min_learning_rate_ratio
    options: dict[str, Any] = {"lr_scheduler_type": value}
    if value == "constant":
        options = {"lr_scheduler_type": "constant_with_warmup"}
    elif value == "cosine" and floor:
        options = {"lr_scheduler_type": "cosine_with_min_lr"}
        options["lr_scheduler_kwargs"] = {"min_lr_rate": floor}
    return carried(options, "; its warm-up begins at 0")


def _evaluation(value: int, config: TrainConfig) -> Fate:
    options: dict[str, Any] = {"eval_on_start": True}
    if value:
        options |= {"eval_strategy": "steps", "eval_steps": value * updates_of(config)}
    note = ", in optimiser updates" if value else ""
    return carried(options, f"{note}; train.py: after the run")


def _completions(value: int, config: TrainConfig) -> Fate:
    shown = value if config.output.show_completions_steps else 0
    options = {"log_completions": value > 0, "num_completions_to_print": shown}
    return carried(options, ": all of them are kept")


def _shown(value: int, config: TrainConfig) -> Fate:
    if value > 1:
        return Fate("not carried", "TRL prints them at every step that it logs")
    return Fate("carried", "`num_completions_to_print`")


_TABLE: dict[str, Rule] = {
    **SHARED,
    "seed": option("seed"),
    "model.name": held("train.py: `MODEL`"),
    "model.gguf_file": when(
        lambda c: c.model.gguf_file, option("model_init_kwargs.gguf_file"), "is none"
    ),
    "model.chat_template": when(
        lambda c: c.model.chat_template, held("train.py: `processing_class`"), "is the model's own"
    ),
    "model.trust_remote_code": option("trust_remote_code"),
    "model.device": _device,
    "model.dtype": _dtype,
    "model.attention": when(
        lambda c: c.model.attention != "auto",
        option("model_init_kwargs.attn_implementation"),
        "TRL leaves it to the model, too",
    ),
    "model.sharding": lost_unless("auto", _LAUNCH, "TRL does as `accelerate launch` was told, too"),
    "model.vision_attention": lost_unless(
        "auto", "TRL loads all parts of a model with one implementation", "is the model's"
    ),
    "model.deterministic": option("full_determinism"),
    "model.gradient_checkpointing": option(
        "gradient_checkpointing", to=lambda value, _: bool(value)
    ),
    "model.freeze_vision": when(lambda c: c.model.freeze_vision, held("train.py"), "is off"),
    **dict.fromkeys((f"model.lora.{name}" for name in ("rank", "alpha", "target_modules")), _LORA),
    "data.tasks": option("tasks"),
    "data.skip_broken": held("data: such records are left out of the files"),
    "data.eval_generations": option("num_generations_eval"),
    "data.eval_batch_size": spare("changes the speed alone; TRL takes a prompt at a time"),
    "data.eval_temperature": lost_unless(
        None, "TRL samples at the temperature of the rollouts", "is that of the rollouts"
    ),
    "rollout.num_generations": option("num_generations"),
    "rollout.prompts_per_step": option(
        "generation_batch_size",
        to=lambda value, c: value * c.rollout.num_generations,
        note=", in responses",
    ),
    "rollout.temperature": option("temperature"),
    "rollout.max_prompt_length": lost_unless(
        None, "TRL takes prompts of any length", "TRL takes prompts of any length, too"
    ),
    "rollout.max_completion_length": option("max_completion_length"),
    "rollout.batch_size": lost_unless(
        None, "TRL samples all responses of a step at once", "all are sampled at once"
    ),
    "rollout.engine": uses_vllm(option("use_vllm", to=lambda *_: True, note=", colocated")),
    "rollout.vllm_memory": vllm_memory("vllm_gpu_memory_utilization", "TRL"),
    "rollout.vllm_adapter": uses_vllm(
        lost_unless("merged", "TRL hands merged weights to vLLM", "TRL merges adapters, too")
    ),
    "rollout.vllm_importance_sampling_mode": uses_vllm(_importance),
    **{
        f"rollout.{name}": uses_vllm(option(name))
        for name in ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max")
    },
    **dict.fromkeys(
        (f"rewards.{name}" for name in ("functions", "workers", "timeout", "skip_errors")), _REWARDS
    ),
    **dict.fromkeys(
        (f"rewards.weights.{name}" for name in ("accuracy", "format", "structure")),
        option(
            "reward_weights", to=lambda _, c: list(reward_weights(c.rewards.weights, c.data.source))
        ),
    ),
    "estimator.name": _estimator,
    **dict.fromkeys(
        (f"estimator.{name}" for name in ("task_stage", "ties", "resolution", "decoupled")),
        is_gaussian(held("`estimator_options`")),
    ),
    "estimator.options": held("`estimator_options`"),
    **shaping(lambda key: key.replace(".", "_")),
    "length.only_right": _only_right,
    "length.calibrate": option("length_calibrate"),
    **calibration(lambda key: option(key.replace(".", "_", 1))),
    "entropy.control": _control,
    "task_weights.weights": of_tasks("task_weights"),
    "optimization.steps": _in_updates("max_steps"),
    "optimization.learning_rate": option("learning_rate"),
    "optimization.updates_per_batch": _updates_per_batch,
    "optimization.micro_batch_tokens": held(_BATCH),
    "optimization.beta": option("beta"),
    "optimization.weight_decay": option("weight_decay"),
    "optimization.max_grad_norm": option("max_grad_norm"),
    "optimization.max_skipped_steps": lost("TRL skips no update, whatever its gradient"),
    "optimization.schedule": _schedule,
    "optimization.warmup_steps": _in_updates("warmup_steps"),
    "optimization.min_learning_rate_ratio": floor(
        "TRL's linear schedule falls to 0", held("`lr_scheduler_kwargs`")
    ),
    "optimization.loss_type": _loss_type,
    "optimization.aggregation": _aggregation,
    "optimization.mask_truncated_completions": _masking,
    "optimization.top_entropy_quantile": _quantile,
    "optimization.off_policy_mask_threshold": option("off_policy_mask_threshold"),
    "optimization.epsilon": _number("epsilon", "epsilon"),
    "optimization.epsilon_high": _number("epsilon_high", "epsilon_high"),
    "optimization.dual_clip": _number("delta", "dual_clip"),
    "optimization.temperature_positive": _number("sapo_temperature_pos", "temperature_positive"),
    "optimization.temperature_negative": _number("sapo_temperature_neg", "temperature_negative"),
    "optimization.kl_kind": when(lambda c: c.optimization.beta, _kl, "optimization.beta is 0"),
    "output.dir": held("train.py: `output_dir`"),
    "output.save_steps": _in_updates("save_steps"),
    "output.keep_checkpoints": option("save_total_limit"),
    "output.eval_steps": _evaluation,
    "output.trackers": option("report_to", to=lambda value, _: value or "none"),
    "output.project": option("project"),
    "output.completions": _completions,
    "output.show_completions_steps": _shown,
}

TRL = Export(_TABLE, script_of, ("train.py",), "python train.py")
"""Writes runs for TRL."""
