"""A run as a configuration of verl: what becomes of each key."""

from __future__ import annotations

import math
from pathlib import Path
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
from .verl_files import files_of

_OURS, _ACTOR, _ROLLOUT = "algorithm.g2rpo", "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
_MODEL = "actor_rollout_ref.model"
_REWARDS = held("rewards.py")
#: verl wants a number. So many tokens of a prompt are taken where the run names none.
_PROMPT = 2048


def _longest_prompt(config: TrainConfig) -> int:
    return config.rollout.max_prompt_length or _PROMPT


def _prompt_length(value: int | None, config: TrainConfig) -> Fate:
    options = {"data.max_prompt_length": _longest_prompt(config)}
    if value is not None:
        return carried(options)
    return Fate("not carried", f"verl wants a number; {_PROMPT} tokens are taken", options)


def _ours(key: str) -> Rule:
    return option(f"{_OURS}.{key}")


def _adapters(rule: Rule) -> Rule:
    return when(lambda c: c.model.lora.rank, rule, "model.lora.rank is 0")


def _modules(value: list[str], config: TrainConfig) -> Fate:
    if value:
        return carried({f"{_MODEL}.target_modules": value})
    options = {"target_modules": "all-linear", "exclude_modules": ".*visual.*"}
    return carried({f"{_MODEL}.{name}": found for name, found in options.items()})


def _temperature(value: float | None, config: TrainConfig) -> Fate:
    found = config.rollout.temperature if value is None else value
    section = f"{_ROLLOUT}.val_kwargs"
    return carried({f"{section}.temperature": found, f"{section}.do_sample": found > 0})


def _engine(value: str, config: TrainConfig) -> Fate:
    options = {f"{_ROLLOUT}.name": "vllm", f"{_ROLLOUT}.tensor_model_parallel_size": 1}
    if value == "vllm":
        return carried(options)
    return Fate("not carried", "verl samples with vLLM, which is taken, or SGLang", options)


def _importance(value: str, config: TrainConfig) -> Fate:
    grain, _, bound = value.partition("_")
    low = config.rollout.vllm_importance_sampling_clip_min
    high = config.rollout.vllm_importance_sampling_clip_max
    if value == "off":
        return Fate("carried", "verl's own default is off, too")
    if bound == "truncate" and grain != "geometric" and low is None and high is not None:
        section = "algorithm.rollout_correction"
        return carried({f"{section}.rollout_is": grain, f"{section}.rollout_is_threshold": high})
    return Fate("not carried", "see algorithm.rollout_correction for what verl has; off is taken")


def _importance_bound(value: float | None, config: TrainConfig) -> Fate:
    mode = config.rollout.vllm_importance_sampling_mode
    if mode == "off" or value is None:
        return Fate("not needed", "is none")
    return _importance(mode, config)


def _micro_batch(value: int, config: TrainConfig) -> Fate:
    longest = _longest_prompt(config) + config.rollout.max_completion_length
    options = {
        f"{_ACTOR}.use_dynamic_bsz": True,
        f"{_ACTOR}.ppo_max_token_len_per_gpu": max(value, longest),
    }
    if value >= longest:
        return carried(options)
    text = f"a pass of verl holds the longest prompt and response: {longest} tokens are taken"
    return Fate("not carried", text, options)


def _updates(value: int, config: TrainConfig) -> Fate:
    size = math.ceil(config.rollout.prompts_per_step / value)
    options = {f"{_ACTOR}.ppo_mini_batch_size": size}
    if math.ceil(config.rollout.prompts_per_step / size) == value:
        return carried(options, ", in prompts")
    return Fate("not carried", f"verl's updates of {size} prompts are fewer", options)


def _estimator(value: str, config: TrainConfig) -> Fate:
    options: dict[str, Any] = {f"{_OURS}.estimator.name": value}
    if value == "gdpo" or config.estimator.decoupled:
        options[f"{_OURS}.rewards.weights"] = reward_weights(
            config.rewards.weights, config.data.source
        )._asdict()
    return carried(options)


def _loss_type(value: str, config: TrainConfig) -> Fate:
    name = f"{_ACTOR}.policy_loss.loss_mode"
    mode = "vanilla" if value in CLIPPED else value
    if mode in ("vanilla", "gspo", "cispo", "sapo"):
        return carried({name: mode})
    return Fate("not carried", "verl has no such loss; 'vanilla' is taken", {name: "vanilla"})


def _aggregation(value: str | None, config: TrainConfig) -> Fate:
    loss, name = loss_of(config), f"{_ACTOR}.loss_agg_mode"
    if loss.loss_type == "gspo" and loss.aggregation != "sequence":
        return Fate("not carried", "verl's gspo is a mean over sequences")
    if loss.aggregation == "constant":
        longest = config.rollout.max_completion_length
        return carried({name: "seq-mean-token-sum-norm", f"{_ACTOR}.loss_scale_factor": longest})
    if loss.aggregation == "task":
        text = "verl has no mean over tasks; the mean over tokens is taken"
        return Fate("not carried", text, {name: "token-mean"})
    return carried(
        {name: {"token": "token-mean"}.get(str(loss.aggregation), "seq-mean-token-mean")}
    )


def _number(name: str, ours: str) -> Rule:
    def fate_of(found: float, loss: LossOptions) -> Fate:
        if ours == "dual_clip" and loss.loss_type == "gspo" and not math.isinf(found):
            return Fate("not carried", "verl's gspo has no dual clip")
        if ours == "dual_clip":
            found = min(max(found, 1.000001), 1e6)  # verl wants a finite number above 1
        return carried({f"{_ACTOR}.{name}": found})

    return number_of_loss(ours, fate_of)


def _beta(value: float, config: TrainConfig) -> Fate:
    weight = {f"{_ACTOR}.kl_loss_coef": value} if value else {}
    return carried({f"{_ACTOR}.use_kl_loss": value > 0, **weight})


def _kl(value: str, config: TrainConfig) -> Fate:
    name = f"{_ACTOR}.kl_loss_type"
    if value != "k3-weighted":
        return carried({name: value})
    text = "verl has no weighted one; k3+ is taken, which is the same on policy"
    return Fate("not carried", text, {name: "k3+"})


def _schedule(value: str, config: TrainConfig) -> Fate:
    name = f"{_ACTOR}.optim.lr_scheduler_type"
    if value != "linear":
        return carried({name: value}, "; its warm-up begins at 0")
    text = "verl has constant, which is taken, and cosine"
    return Fate("not carried", text, {name: "constant"})


def _warmup(value: float, config: TrainConfig) -> Fate:
    is_share = 0 < value < 1
    name = "lr_warmup_steps_ratio" if is_share else "lr_warmup_steps"
    return carried({f"{_ACTOR}.optim.{name}": value if is_share else int(value)})


def _evaluation(value: int, config: TrainConfig) -> Fate:
    often = value or config.optimization.steps
    return carried({"trainer.val_before_train": True, "trainer.test_freq": often})


def _folder(value: str, config: TrainConfig) -> Fate:
    name = Path(value).name or "run"
    return carried({"trainer.default_local_dir": value, "trainer.experiment_name": name})


def _completions(value: int, config: TrainConfig) -> Fate:
    folder = f"{config.output.dir}/rollouts" if value else None
    return carried({"trainer.rollout_data_dir": folder}, ": all of them" if value else "")


_DTYPE = "verl computes in bfloat16 over float32 weights"
_SHARDED = "verl shards the model over all GPUs by FSDP2"

_TABLE: dict[str, Rule] = {
    **SHARED,
    "seed": option(f"{_ROLLOUT}.seed", f"{_ACTOR}.data_loader_seed"),
    "model.name": option(f"{_MODEL}.path"),
    "model.gguf_file": lost_unless(None, "save the model in Hugging Face format first", "is none"),
    "model.chat_template": when(
        lambda c: c.model.chat_template,
        option(
            f"{_MODEL}.custom_chat_template",
            to=lambda value, _: Path(value).read_text(encoding="utf-8"),
        ),
        "is the model's own",
    ),
    "model.trust_remote_code": option(f"{_MODEL}.trust_remote_code", "data.trust_remote_code"),
    "model.device": when(
        lambda c: c.model.device not in ("auto", "cuda"),
        lost("verl trains on GPUs; name them by CUDA_VISIBLE_DEVICES"),
        "verl finds its GPUs",
    ),
    "model.dtype": when(lambda c: c.model.dtype == "float32", lost(_DTYPE), _DTYPE),
    "model.attention": when(
        lambda c: c.model.attention != "auto",
        option(f"{_MODEL}.override_config.attn_implementation"),
        "verl chooses",
    ),
    "model.sharding": when(lambda c: c.model.sharding == "none", lost(_SHARDED), _SHARDED),
    "model.vision_attention": lost_unless(
        "auto", "verl loads all parts of a model with one implementation", "verl chooses"
    ),
    "model.deterministic": option(
        f"{_ACTOR}.fsdp_config.full_determinism", f"{_ROLLOUT}.full_determinism"
    ),
    "model.gradient_checkpointing": option(
        f"{_MODEL}.enable_gradient_checkpointing", to=lambda value, _: bool(value)
    ),
    "model.freeze_vision": option(f"{_ACTOR}.freeze_vision_tower"),
    "model.lora.rank": _adapters(option(f"{_MODEL}.lora_rank")),
    "model.lora.alpha": _adapters(
        option(f"{_MODEL}.lora_alpha", to=lambda value, c: value or 2 * c.model.lora.rank)
    ),
    "model.lora.target_modules": _adapters(_modules),
    "data.tasks": _ours("tasks"),
    "data.skip_broken": option(
        "data.filter_overlong_prompts", note="; others are left out of the files"
    ),
    "data.eval_generations": option(f"{_ROLLOUT}.val_kwargs.n"),
    "data.eval_batch_size": spare("verl's engine makes its own batches"),
    "data.eval_temperature": _temperature,
    "rollout.num_generations": option(f"{_ROLLOUT}.n"),
    "rollout.prompts_per_step": option("data.train_batch_size"),
    "rollout.temperature": option(f"{_ROLLOUT}.temperature"),
    "rollout.max_prompt_length": _prompt_length,
    "rollout.max_completion_length": option("data.max_response_length"),
    "rollout.batch_size": spare("verl's engine makes its own batches"),
    "rollout.engine": _engine,
    "rollout.vllm_memory": vllm_memory(f"{_ROLLOUT}.gpu_memory_utilization", "verl"),
    "rollout.vllm_adapter": uses_vllm(spare("verl hands adapters to vLLM in its own way")),
    "rollout.vllm_importance_sampling_mode": uses_vllm(_importance),
    "rollout.vllm_importance_sampling_clip_min": uses_vllm(_importance_bound),
    "rollout.vllm_importance_sampling_clip_max": uses_vllm(_importance_bound),
    **dict.fromkeys(
        (
            *("rewards.functions", "rewards.timeout", "rewards.weights.accuracy"),
            *("rewards.weights.format", "rewards.weights.structure"),
        ),
        _REWARDS,
    ),
    "rewards.workers": held("rewards.py: of each of verl's reward workers"),
    "rewards.skip_errors": lost_unless(False, "a reward function that fails ends the run"),
    "estimator.name": _estimator,
    **{
        f"estimator.{name}": is_gaussian(_ours(f"estimator.{name}"))
        for name in ("task_stage", "ties", "resolution")
    },
    **shaping(lambda key: f"{_OURS}.{key}"),
    "estimator.decoupled": _ours("estimator.decoupled"),
    "estimator.options": _ours("estimator.options"),
    "length.only_right": _ours("length.only_right"),
    "entropy.control": _ours("entropy.control"),
    "length.calibrate": lost_unless(False, "targets are fixed here"),
    **calibration(lambda key: lost("targets are fixed here")),
    "optimization.steps": option("trainer.total_training_steps"),
    "optimization.learning_rate": option(f"{_ACTOR}.optim.lr"),
    "optimization.updates_per_batch": _updates,
    "optimization.micro_batch_tokens": _micro_batch,
    "optimization.beta": _beta,
    "optimization.weight_decay": option(f"{_ACTOR}.optim.weight_decay"),
    "optimization.max_grad_norm": option(f"{_ACTOR}.grad_clip", f"{_ACTOR}.optim.clip_grad"),
    "optimization.max_skipped_steps": lost("verl leaves such updates out, however many"),
    "optimization.schedule": _schedule,
    "optimization.warmup_steps": _warmup,
    "optimization.min_learning_rate_ratio": floor(
        "verl has no linear schedule", option(f"{_ACTOR}.optim.min_lr_ratio")
    ),
    "optimization.loss_type": _loss_type,
    "optimization.aggregation": _aggregation,
    "optimization.mask_truncated_completions": lost_unless(
        "off", "responses that were cut off count as all others"
    ),
    "optimization.top_entropy_quantile": lost_unless(1.0, "the loss is over all tokens"),
    "optimization.off_policy_mask_threshold": lost_unless(None, "no response is masked so"),
    "optimization.epsilon": _number("clip_ratio_low", "epsilon"),
    "optimization.epsilon_high": _number("clip_ratio_high", "epsilon_high"),
    "optimization.dual_clip": _number("clip_ratio_c", "dual_clip"),
    "optimization.temperature_positive": _number("tau_pos", "temperature_positive"),
    "optimization.temperature_negative": _number("tau_neg", "temperature_negative"),
    "optimization.kl_kind": when(lambda c: c.optimization.beta, _kl, "optimization.beta is 0"),
    "output.dir": _folder,
    "output.save_steps": option("trainer.save_freq"),
    "output.keep_checkpoints": option("trainer.max_actor_ckpt_to_keep"),
    "output.eval_steps": _evaluation,
    "output.trackers": option("trainer.logger", to=lambda value, _: ["console", *value]),
    "output.project": option("trainer.project_name"),
    "output.completions": _completions,
    "output.show_completions_steps": lost_unless(0, "verl prints none"),
}


VERL = Export(
    _TABLE,
    files_of,
    ("config.yaml", "run.sh", "rewards.py"),
    "bash run.sh trainer.n_gpus_per_node=8",
)
"""Writes runs for verl."""
