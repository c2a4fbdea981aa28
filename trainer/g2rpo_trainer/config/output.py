"""The section ``output``: what a run leaves behind."""

from typing import Literal

from pydantic import Field, field_validator

from .section import Section


class Output(Section):
    """What a run leaves behind."""

    dir: str = Field(default="runs/g2rpo", min_length=1, description="the run's folder")
    save_steps: int = Field(default=25, ge=1, description="steps between checkpoints [steps]")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="newest checkpoints that stay [checkpoints]"
    )
    eval_steps: int = Field(
        default=0, ge=0, description="steps between evaluations; 0 is before and after only [steps]"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=["tensorboard"], description="where metrics go beside metrics.jsonl"
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
