"""The section ``entropy``: how certain the policy may be of its tokens, task by task."""

from pydantic import Field, field_validator

from .section import Section


class Entropy(Section):
    """Bounds of each task's mean token entropy."""

    weight: float = Field(default=0.02, ge=0, description="weight of the term; 0 switches it off")
    low: float = Field(default=0.05, ge=0, description="lower bound [nats]")
    high: float = Field(default=0.6, ge=0, description="upper bound [nats]")
    bounds: dict[str, tuple[float, float]] = Field(
        default={}, description="task: [low, high] in place of the common bounds [nats]"
    )

    @field_validator("bounds")
    @classmethod
    def _bounds_ascend(
        cls, bounds: dict[str, tuple[float, float]]
    ) -> dict[str, tuple[float, float]]:
        for task, (low, high) in bounds.items():
            if not 0 <= low <= high:
                raise ValueError(f"{task} is [{low}, {high}], but must have 0 <= low <= high")
        return bounds

    def of(self, task: str) -> tuple[float, float]:
        """Return the bounds of `task` in nats: its own, else the common ones."""
        return self.bounds.get(task, (self.low, self.high))
