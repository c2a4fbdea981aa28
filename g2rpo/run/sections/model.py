"""The section ``model``: which policy is trained, and where."""

import re
from typing import Literal

from pydantic import Field, field_validator

from .section import Section


class Model(Section):
    """Which policy is trained, and where."""

    name: str = Field(
        default="builtin",
        min_length=1,
        description="`builtin` (the policy inside the package), a folder, or a Hugging Face model",
    )
    device: str = Field(
        default="auto",
        description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, … or `mps`",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="floating dtype of the weights"
    )

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"unknown device {device!r}; name auto, cpu, mps, cuda or cuda:1, …")
        return device
