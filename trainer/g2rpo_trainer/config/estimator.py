"""The section ``estimator``: how rewards become advantages."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from g2rpo._suggest import unknown_name

from .section import Section, none_is_null


class Estimator(Section):
    """How rewards become advantages."""

    name: str = Field(default="gaussian", description="a name in `g2rpo.ESTIMATORS`")
    task_stage: Annotated[
        Literal["standardize", "match", "match-all"] | None, BeforeValidator(none_is_null)
    ] = Field(
        default="standardize", description="what works across a task's groups; null for nothing"
    )
    ties: Literal["midpoint", "barycentre"] = Field(
        default="midpoint", description="which value a block of equal rewards gets"
    )
    resolution: float | None = Field(
        default=None,
        gt=0,
        description="grid that rewards are rounded to before ranking [reward units]",
    )

    decoupled: bool = Field(
        default=False,
        description=(
            "match every component of the reward by itself and add with `rewards.weights`, rather "
            "than add first; `gdpo` always does"
        ),
    )

    options: dict[str, bool | int | float | str] = Field(
        default={},
        description=(
            "options of another estimator than `gaussian`, such as `{k: 2}` of `pass@k`; its right "
            "responses are those with a reward above `threshold`, .5 by default"
        ),
    )

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        # Read at the time of the check, so that a registered estimator counts.
        from g2rpo.advantages import ESTIMATORS

        if name not in ESTIMATORS:
            raise ValueError(unknown_name("estimator", name, ESTIMATORS))
        return name

    @model_validator(mode="after")
    def _is_decoupled_where_that_is_possible(self) -> "Estimator":
        if self.decoupled and self.name not in ("gaussian", "gdpo"):
            raise ValueError(
                f"decoupled is set, but {self.name} adds the components first; "
                "name gaussian or gdpo, or leave decoupled out"
            )
        return self

    @model_validator(mode="after")
    def _options_are_those_of_the_estimator(self) -> "Estimator":
        if not self.options:
            return self
        if self.name == "gaussian":
            raise ValueError(
                f"options is {self.options}, but those of gaussian are keys beside it: "
                "task_stage, ties, resolution, decoupled"
            )
        # The estimator itself knows best what it takes.
        import numpy as np

        from g2rpo.advantages import ESTIMATORS, takes_lengths

        estimator, labels = ESTIMATORS[self.name], np.zeros(2, np.int64)
        given: dict[str, Any] = dict(self.options)
        if of_the_run := {"lengths", "task_weights", "component_weights"} & given.keys():
            raise ValueError(f"options has {sorted(of_the_run)}, which the run itself gives")
        if takes_lengths(estimator):
            given["lengths"] = labels
        try:
            estimator(np.zeros(2), labels, labels, **given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"options {self.options} of {self.name}: {error}") from None
        return self
