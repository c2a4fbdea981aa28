"""The section ``optimization``: how advantages change the policy."""

from dataclasses import fields
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from g2rpo import LOSSES, LossOptions
from g2rpo._suggest import unknown_name

from .section import Section, loss_or_off


class Optimization(Section):
    """How advantages change the policy."""

    steps: int = Field(default=280, ge=1, description="length of the run [steps]")
    learning_rate: float = Field(
        default=1.5e-4, gt=0, description="AdamW's learning rate after warm-up"
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
        default="linear",
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
        default=None, description="what the loss is a mean over; null is the loss type's own"
    )
    mask_truncated_completions: Annotated[
        Literal["off", "loss", "all"], BeforeValidator(loss_or_off)
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
    def _loss_has_what_it_takes(self) -> "Optimization":
        try:
            self.loss_options(1)
        except TypeError as error:  # which a validator must not raise
            raise ValueError(str(error)) from None
        return self

    def loss_options(self, max_completion_length: int) -> LossOptions:
        """Return the options of the loss, without gaps.

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
