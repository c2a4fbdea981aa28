"""The section ``estimator``: how rewards become advantages."""

from typing import Annotated, Literal

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
