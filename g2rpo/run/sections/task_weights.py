"""The section ``task_weights``: how much each task counts in the surrogates."""

from pydantic import Field, field_validator

from .section import Section


class TaskWeights(Section):
    """Factors of each task's advantages."""

    weights: dict[str, float] = Field(
        default={}, description="task: factor of its advantages; 1 where left out"
    )
    adapt: int = Field(
        default=0,
        ge=0,
        description="steps between adaptations of the weights to the tasks' gradient norms; 0 for "
        "none [steps]",
    )
    rate: float = Field(
        default=0.5, gt=0, le=1, description="exponent of an adaptation; 1 equalises at once"
    )
    low: float = Field(default=0.2, gt=0, le=1, description="least that an adaptive weight becomes")
    high: float = Field(default=5.0, ge=1, description="most that an adaptive weight becomes")

    @field_validator("weights")
    @classmethod
    def _weights_are_not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        for task, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{task} is {weight:g}, but must be 0 or more")
        return weights
