"""The sections ``model``, ``optimization``, ``output``: what is trained, how, and what is kept."""

import re
from dataclasses import fields
from importlib import import_module
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from g2rpo import LOSSES, LossOptions
from g2rpo._suggest import unknown_name

from .section import Section


class Lora(Section):
    """Low-rank adapters."""

    rank: int = Field(
        default=0, ge=0, description="rank of the adapters; 0 trains the weights themselves"
    )
    alpha: int | None = Field(
        default=None,
        ge=1,
        description="adapters count alpha/rank times; null is twice the rank",
    )
    target_modules: list[str] = Field(
        default=[],
        description=(
            "names, or ends of names, of the linear layers with an adapter; left out, all of the "
            "language model but its output layer"
        ),
    )


class Model(Section):
    """The trained policy, its trained parts, and its device."""

    name: str = Field(
        default="builtin",
        min_length=1,
        description="`builtin` (the policy inside the package), a folder, or a Hugging Face model",
    )
    gguf_file: str | None = Field(
        default=None, description="file of the folder or the hub to load, if the model is a GGUF"
    )
    chat_template: str | None = Field(
        default=None, description="Jinja file in place of the model's own chat template"
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with the model"
    )
    device: str = Field(
        default="auto",
        description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, … or `mps`",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="floating dtype of the weights; the optimiser keeps bfloat16 ones in float32; "
        "`auto` is bfloat16 on a GPU that computes in it, else float32",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="attention implementation; `auto` leaves it to the model"
    )
    vision_attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="the same of the vision tower; `auto` is that of the model"
    )
    sharding: Literal["auto", "none", "fsdp"] = Field(
        default="auto",
        description="of several processes each has the whole model (`none`) or a part of it "
        "(`fsdp`); `auto` as `accelerate launch` was told",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description="compute layers twice in the update in place of keeping them; `auto` where "
        "they would take more than half of a GPU's free memory",
    )
    deterministic: bool = Field(
        default=False,
        description="on a GPU only kernels that repeat themselves to the bit, which are slower",
    )
    freeze_vision: bool = Field(default=False, description="leave the vision tower as it is")
    lora: Lora = Lora()

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"unknown device {device!r}; name auto, cpu, mps, cuda or cuda:1, …")
        return device


def _loss_or_off(value: Any) -> Any:
    """Return ``"loss"`` for True and ``"off"`` for False, the values of TRL."""
    return {True: "loss", False: "off"}[value] if isinstance(value, bool) else value


class Optimization(Section):
    """Loss, optimiser and schedule."""

    steps: int = Field(default=280, ge=1, description="length of the run [steps]")
    learning_rate: float = Field(
        default=1e-6,
        gt=0,
        description="AdamW's learning rate after warm-up; left out with adapters, 1e-5",
    )
    updates_per_batch: int = Field(
        default=1, ge=1, description="optimiser updates that share a step's rollouts [updates]"
    )
    micro_batch_tokens: int = Field(
        default=4096,
        ge=1,
        description="most tokens of one forward and backward pass, prompts and padding included, "
        "a shared prompt once [tokens]",
    )
    beta: float = Field(
        default=0.0, ge=0, description="weight of the KL penalty; 0 loads no reference"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="norm that gradients are clipped to"
    )
    max_skipped_steps: int = Field(
        default=5,
        ge=0,
        description="updates in a row that a gradient that is not finite may cost [updates]",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="learning rate after warm-up: constant, or falling to the end of the run",
    )
    warmup_steps: float = Field(
        default=5, ge=0, description="linear rise; below 1 a share of the run [steps]"
    )
    min_learning_rate_ratio: float = Field(
        default=0.0, ge=0, le=1, description="share of the learning rate that is left at the end"
    )
    loss_type: str = Field(
        default="ppo",
        description="the surrogate of the policy term: a name in `g2rpo.LOSSES`, or `module:name` "
        "of one that a module of one's own registers",
    )
    aggregation: Literal["token", "sequence", "constant", "task"] | None = Field(
        default=None,
        description="the loss is a mean over tokens, sequences or tasks, or a sum over a constant; "
        "null is the loss type's own",
    )
    mask_truncated_completions: Annotated[
        Literal["off", "loss", "all"], BeforeValidator(_loss_or_off)
    ] = Field(
        default="off",
        description="responses that their length limit cut off count everywhere (`off`, or "
        "`false`); not in the loss but in the statistics of the advantages (`loss`, or `true`); or "
        "in neither (`all`)",
    )
    top_entropy_quantile: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of each task's tokens, those of the highest entropies, that the "
        "surrogates are over",
    )
    off_policy_mask_threshold: float | None = Field(
        default=None,
        gt=0,
        description="mean log-ratio of sampler to policy beyond which a response of negative "
        "advantage leaves the surrogates; null for none [nats]",
    )
    epsilon: float | None = Field(
        default=None, description="clip range of the ratio below 1; null is the loss type's own"
    )
    epsilon_high: float | None = Field(
        default=None, description="clip range of the ratio above 1; null is the loss type's own"
    )
    dual_clip: float | None = Field(
        default=None,
        allow_inf_nan=True,
        description="ratio at which negative advantages stop counting, `.inf` for never; null is "
        "the loss type's own",
    )
    temperature_positive: float | None = Field(
        default=None,
        description="steepness of the sigmoid of `sapo` for positive advantages; null is 1.0",
    )
    temperature_negative: float | None = Field(
        default=None,
        description="steepness of the sigmoid of `sapo` for the others; null is 1.05",
    )
    kl_kind: Literal["k1", "k2", "k3", "k1+", "k3+", "k3-weighted"] = Field(
        default="k3-weighted", description="estimate of the KL penalty"
    )

    @field_validator("loss_type")
    @classmethod
    def _loss_type_is_known(cls, path: str) -> str:
        module, _, name = path.rpartition(":")
        if module:
            try:
                import_module(module)
            except ImportError as error:
                raise ValueError(
                    f"{path!r} names a module that cannot be imported: {error}"
                ) from None
        if name not in LOSSES:
            raise ValueError(unknown_name("loss type", name, LOSSES))
        return path

    @model_validator(mode="after")
    def _loss_takes_its_options(self) -> Self:
        try:
            self.loss_options(1)
        except TypeError as error:  # which a validator must not raise
            raise ValueError(str(error)) from None
        return self

    def loss_options(self, max_completion_length: int) -> LossOptions:
        """Return the options of the loss, with the loss type's own values for those left out.

        Parameters
        ----------
        max_completion_length : int
            Longest response in tokens, for an aggregation that divides by it.
        """
        names = {field.name for field in fields(LossOptions)} & set(type(self).model_fields)
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        given["loss_type"] = self.loss_type.rpartition(":")[2]
        if (self.aggregation or LOSSES[given["loss_type"]].aggregation) == "constant":
            given["max_completion_length"] = max_completion_length
        return LossOptions(**given).resolved()


class Output(Section):
    """Checkpoints, evaluations, logs and plots of a run."""

    dir: str = Field(default="runs/g2rpo", min_length=1, description="the run's folder")
    save_steps: int = Field(default=25, ge=1, description="steps between checkpoints [steps]")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="newest checkpoints that stay [checkpoints]"
    )
    eval_steps: int = Field(
        default=0, ge=0, description="steps between evaluations; 0 is before and after only [steps]"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=["tensorboard"], description="trackers of the metrics beside metrics.jsonl"
    )
    project: str = Field(
        default="g2rpo",
        min_length=1,
        description="under which wandb and trackio file the run",
    )
    completions: int = Field(
        default=8,
        ge=0,
        description="responses of each step that completions.jsonl keeps; 0 for none [rollouts]",
    )
    show_completions_steps: int = Field(
        default=0,
        ge=0,
        description="steps between tables of responses on the terminal; 0 for none [steps]",
    )
    plots: bool = Field(default=True, description="draw pictures of the metrics at the end")
    equity_steps: int = Field(
        default=10,
        ge=0,
        description="steps between measurements of each task's gradient; 0 for none [steps]",
    )
    equity_prompts: int = Field(
        default=2, ge=1, description="prompts of each task in such a measurement [prompts]"
    )

    @field_validator("trackers")
    @classmethod
    def _trackers_differ(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError(f"must name each tracker once, but is {trackers}")
        return trackers
