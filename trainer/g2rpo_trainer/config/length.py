"""The section ``length``: how long the responses to each task should be."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from g2rpo.calibration import QUANTILES
from g2rpo.length import LengthTarget

from .section import Section, off_is_text

LengthThresholds = tuple[float, float, float, float]

LENGTH_KINDS = ("reasoning", "direct")
"""Targets that follow from the longest response allowed, see :class:`g2rpo.LengthTarget`."""

DEFAULT_LENGTH_TARGETS: dict[str, LengthThresholds | str] = {
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


class Calibration(Section):
    """How length targets follow the right responses."""

    quantiles: LengthThresholds = Field(
        default=QUANTILES,
        description="where minimum, low, high and maximum stand among right lengths, 0 to 1",
    )
    decay: float = Field(
        default=0.9, ge=0, le=1, description="share of the past in each step's threshold"
    )
    max_change: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest relative change of a threshold in a step; one token is allowed",
    )
    min_samples: int = Field(
        default=8,
        ge=1,
        description="right responses that a task needs in a step to change [rollouts]",
    )
    warmup_steps: int = Field(
        default=10,
        ge=0,
        description="first steps, in which targets are found and no length is rewarded [steps]",
    )

    @field_validator("quantiles")
    @classmethod
    def _quantiles_ascend(cls, quantiles: LengthThresholds) -> LengthThresholds:
        if list(quantiles) != sorted(quantiles) or not 0 <= quantiles[0] <= quantiles[-1] <= 1:
            raise ValueError(f"is {list(quantiles)}, but must ascend from 0 or more to 1 or less")
        return quantiles


def _as_target(value: Any) -> LengthThresholds | str:
    """Return a target as it was written, or say in one line what it must be."""
    if isinstance(value, str) and value in LENGTH_KINDS:
        return value
    wish = f"must be [minimum, low, high, maximum] in tokens, or {' or '.join(LENGTH_KINDS)}"
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} {wish}")
    if len(value) != 4:
        raise ValueError(
            f"{list(value)} has too {'few' if len(value) < 4 else 'many'} values; {wish}"
        )
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        raise ValueError(f"{list(value)} {wish}")
    minimum, low, high, maximum = (float(each) for each in value)
    if not 0 <= minimum <= low <= high <= maximum < math.inf:
        raise ValueError(f"{list(value)} must ascend from 0 or more: [minimum, low, high, maximum]")
    return minimum, low, high, maximum


Target = Annotated[LengthThresholds | str, BeforeValidator(_as_target)]


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
    targets: dict[str, Target] = Field(
        default=DEFAULT_LENGTH_TARGETS,
        description=(
            "task: [minimum, low, high, maximum] [tokens], or `reasoning` or `direct`; a task left "
            "out has none; left out itself, those of the built-in tasks, for other sources none"
        ),
    )
    calibrate: bool = Field(
        default=False,
        description="let the targets follow the lengths of right responses during the run",
    )
    calibration: Calibration = Field(
        default=Calibration(), description="how length targets follow the right responses"
    )

    def target_of(self, task: str, longest: int) -> LengthTarget | None:
        """Return a task's target as described, or None if it has none.

        Parameters
        ----------
        task : str
            The task.
        longest : int
            Longest response that it is allowed, in tokens, from which the kinds follow.

        Examples
        --------
        >>> length = Length(targets={"proofs": "reasoning", "ocr": (0, 0, 10, 20)})
        >>> length.target_of("proofs", 1024).high, length.target_of("vqa", 1024)
        (512.0, None)
        """
        target = self.targets.get(task)
        if target is None:
            return None
        if target == "reasoning":
            return LengthTarget.reasoning(longest)
        if target == "direct":
            return LengthTarget.direct(longest)
        assert not isinstance(target, str)  # there are no other kinds
        return LengthTarget(*target)
