"""The section ``output``: what a run leaves behind."""

from pydantic import Field

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
    tensorboard: bool = Field(
        default=True, description="write TensorBoard events beside metrics.jsonl"
    )
