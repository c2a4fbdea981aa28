"""The section ``task_weights``: how much each task counts in the surrogates."""

from pydantic import Field

from .section import Section, TaskFactors


class TaskWeights(Section):
    """Factors of each task's advantages."""

    weights: TaskFactors = Field(
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
