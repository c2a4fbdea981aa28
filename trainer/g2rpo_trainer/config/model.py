"""The section ``model``: which policy is trained, what of it, and where."""

import re
from typing import Literal

from pydantic import Field, field_validator

from .section import Section


class Lora(Section):
    """Low-rank adapters: small trained matrices beside weights that stay as they are."""

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
    """Which policy is trained, what of it, and where."""

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
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="floating dtype of the weights; the optimiser keeps bfloat16 ones in float32",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto", description="attention implementation; `auto` leaves it to the model"
    )
    sharding: Literal["auto", "none", "fsdp"] = Field(
        default="auto",
        description="of several processes each has the whole model (`none`) or a part of it "
        "(`fsdp`); `auto` as `accelerate launch` was told",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute layers twice in the update in place of keeping them"
    )
    freeze_vision: bool = Field(default=False, description="leave the vision tower as it is")
    lora: Lora = Field(default=Lora(), description="low-rank adapters")

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"unknown device {device!r}; name auto, cpu, mps, cuda or cuda:1, …")
        return device
