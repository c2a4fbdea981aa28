"""The section ``optimization``: how advantages change the policy."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

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
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="clip range of the ratio below 1")
    epsilon_high: float = Field(default=0.3, gt=0, description="clip range of the ratio above 1")
    dual_clip: float | None = Field(
        default=3.0,
        gt=1,
        description="ratio at which negative advantages stop counting; null for never",
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
    loss_type: Literal["ppo", "gspo", "cispo", "sapo"] = Field(
        default="ppo", description="the surrogate of the policy term"
    )
    aggregation: Literal["token", "sequence", "constant"] = Field(
        default="token", description="what the loss is a mean over"
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
