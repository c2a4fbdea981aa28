"""The section ``rewards``: what a response is worth, and what scoring it may cost."""

import re

from pydantic import Field, field_validator, model_validator

from g2rpo.rewards.score import ACCURACY_WEIGHT, FORMAT_WEIGHT

from .section import Section

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class RewardWeights(Section):
    """What the components of a reward weigh in its sum."""

    accuracy: float = Field(default=ACCURACY_WEIGHT, ge=0, description="weight of the accuracy")
    format: float = Field(
        default=FORMAT_WEIGHT, ge=0, description="weight of one thought and one answer in tags"
    )
    structure: float | None = Field(
        default=None,
        ge=0,
        description="weight of the answer's shape; null is the paper's 0.5, for built-in tasks 0",
    )

    @model_validator(mode="after")
    def _something_counts(self) -> "RewardWeights":
        if not (self.accuracy or self.format or self.structure):
            raise ValueError("are all 0, but one at least must be more")
        return self


class Rewards(Section):
    """What a response is worth, and what scoring it may cost."""

    functions: dict[str, str] = Field(
        default={},
        description="problem type: import path `module:function` of a reward of one's own",
    )
    weights: RewardWeights = Field(
        default=RewardWeights(), description="what each component weighs in the reward"
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description=(
            "processes that score; 0 is in the training process without a time limit; null is one "
            "a core, at most 8, if scoring can take long (`maths`, functions of one's own), else 0"
        ),
    )
    timeout: float = Field(
        default=10.0, gt=0, description="most time for scoring one response [seconds]"
    )
    skip_errors: bool = Field(
        default=False,
        description="leave out and count responses whose reward function fails",
    )

    @field_validator("functions")
    @classmethod
    def _functions_have_import_paths(cls, functions: dict[str, str]) -> dict[str, str]:
        for problem_type, path in functions.items():
            if not _IMPORT_PATH.fullmatch(path):
                raise ValueError(f"{problem_type} is {path!r}, but must be module:function")
        return functions
