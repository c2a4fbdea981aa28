"""The section ``length``: how long the responses to each task should be."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from .section import Section, off_is_text

LengthThresholds = tuple[float, float, float, float]

DEFAULT_LENGTH_TARGETS: dict[str, LengthThresholds] = {
    "grounding": (0, 0, 20, 32),
    "vqa": (5, 9, 24, 40),
    "spatial": (5, 10, 24, 40),
    "chart": (5, 12, 30, 44),
    "ocr": (0, 0, 10, 20),
    "maths": (6, 9, 40, 48),
}
"""Length targets of the built-in tasks in tokens: perception (grounding, OCR) is to be answered
outright, the others with a written thought, as in the paper. An answer alone takes 6 tokens, 18 for
a box; a worked one 10 to 30, 30 for a box."""


class Length(Section):
    """Shaping of the response length, task by task."""

    mode: Annotated[Literal["term", "reward", "off"], BeforeValidator(off_is_text)] = Field(
        default="term", description="own term of the loss, part of the reward, or nothing"
    )
    weight: float = Field(
        default=1.0, ge=0, description="weight of the term, or of the reward component"
    )
    only_right: bool = Field(
        default=True,
        description="count the length of right responses only: accuracy above 0",
    )
    targets: dict[str, LengthThresholds] = Field(
        default=DEFAULT_LENGTH_TARGETS,
        description="task: [minimum, low, high, maximum] [tokens]; a task left out has none",
    )

    @field_validator("targets")
    @classmethod
    def _thresholds_ascend(
        cls, targets: dict[str, LengthThresholds]
    ) -> dict[str, LengthThresholds]:
        for task, thresholds in targets.items():
            if thresholds[0] < 0 or list(thresholds) != sorted(thresholds):
                raise ValueError(
                    f"{task} is {list(thresholds)}, but must ascend from 0 or more: "
                    "[minimum, low, high, maximum]"
                )
        return targets
