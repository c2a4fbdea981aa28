"""The section ``rollout``: how responses are sampled."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .section import Section, off_is_text


class Rollout(Section):
    """How responses are sampled."""

    num_generations: int = Field(default=8, ge=2, description="responses to each prompt [rollouts]")
    prompts_per_step: int = Field(default=24, ge=1, description="prompts in each step [prompts]")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    max_completion_length: int = Field(default=48, ge=1, description="longest response [tokens]")
    shared_prompts: Annotated[Literal["auto", "off"], BeforeValidator(off_is_text)] = Field(
        default="auto",
        description="compute a prompt once for all of its responses where the model allows it",
    )
