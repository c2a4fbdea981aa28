"""The sections ``estimator``, ``length``, ``entropy``, ``task_weights``: rewards and shaping."""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from g2rpo import ESTIMATORS, LengthTarget
from g2rpo._suggest import unknown_name
from g2rpo.calibration import QUANTILES
from g2rpo.shaping_options import check_estimator, length_targets

from .section import Section, TaskFactors, none_is_null, off_is_text


class Estimator(Section):
    """Estimator of the advantages, and its options."""

    name: str = Field(default="gaussian", description="a name in `g2rpo.ESTIMATORS`")
    task_stage: Annotated[
        Literal["standardize", "match", "match-all"] | None, BeforeValidator(none_is_null)
    ] = Field(default="standardize", description="stage across a task's groups; null for none")
    ties: Literal["midpoint", "barycentre"] = Field(
        default="midpoint", description="value of a block of equal rewards"
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
        if name not in ESTIMATORS:
            raise ValueError(unknown_name("estimator", name, ESTIMATORS))
        return name

    @model_validator(mode="after")
    def _can_decouple(self) -> Self:
        if self.decoupled and self.name not in ("gaussian", "gdpo"):
            raise ValueError(
                f"decoupled is set, but {self.name} adds the components first; "
                "name gaussian or gdpo, or leave decoupled out"
            )
        return self

    @model_validator(mode="after")
    def _estimator_takes_its_options(self) -> Self:
        if self.name == "gaussian" and self.options:
            raise ValueError(
                f"options is {self.options}, but those of gaussian are keys beside it: "
                "task_stage, ties, resolution, decoupled"
            )
        keys = {
            "estimator_options": "options",
            "reward_weights": "rewards.weights",
            "task_weights": "task_weights.weights",
        }
        try:
            check_estimator(self.name, self.keywords, keys=keys)
        except TypeError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of the estimator; those of Gaussian matching are fields of the section."""
        if self.name == "gaussian":
            return self.model_dump(exclude={"name", "options"})
        return dict(self.options)


LengthThresholds = tuple[float, float, float, float]

LENGTH_KINDS = ("reasoning", "direct")
"""Kinds of targets that follow from a task's longest response, see :class:`g2rpo.LengthTarget`."""


class Calibration(Section):
    """Calibration of length targets on the lengths of right responses."""

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
    """Validate a length target."""
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
    """Length term or length reward, with a target for each task."""

    mode: Annotated[Literal["term", "reward", "off"], BeforeValidator(off_is_text)] = Field(
        default="term", description="own term of the loss, part of the reward, or nothing"
    )
    weight: float = Field(
        default=0.1, ge=0, description="weight of the term, or of the reward component"
    )
    only_right: bool = Field(
        default=True,
        description="count the length of right responses only: accuracy above 0",
    )
    targets: dict[str, Target] = Field(
        default={},
        description=(
            "task: [minimum, low, high, maximum] [tokens], or `reasoning` or `direct`; a task left "
            "out has none"
        ),
    )
    calibrate: bool = Field(
        default=False,
        description="let the targets follow the lengths of right responses during the run",
    )
    calibration: Calibration = Calibration()

    def target_of(self, task: str, longest: int) -> LengthTarget | None:
        """Return the length target of a task, or None.

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
        return None if target is None else length_targets({task: target}, longest)[task]


class Entropy(Section):
    """Bounds of each task's mean token entropy."""

    weight: float = Field(default=0.02, ge=0, description="weight of the term; 0 switches it off")
    weights: TaskFactors = Field(default={}, description="task: weight in place of the common one")
    low: float = Field(default=0.2, ge=0, description="lower bound [nats]")
    high: float = Field(default=0.6, ge=0, description="upper bound [nats]")
    bounds: dict[str, tuple[float, float]] = Field(
        default={}, description="task: [low, high] in place of the common bounds [nats]"
    )
    control: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description=(
            "weights stay, or the weight of a task rises while its entropy is "
            "outside of its bounds and falls inside"
        ),
    )
    control_rate: float = Field(
        default=0.02,
        gt=0,
        description="change of an adaptive weight in a step for each nat [1/nats]",
    )
    max_weight: float = Field(default=1.0, gt=0, description="most that an adaptive weight becomes")

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

    def kept_bounds(self, tasks: Iterable[str]) -> dict[str, tuple[float, float]]:
        """Return the bounds of the tasks that the entropy term keeps there."""
        is_adaptive = self.control == "adaptive"
        return {task: self.of(task) for task in tasks if is_adaptive or self.weight_of(task)}

    def weight_of(self, task: str) -> float:
        """Return the weight of `task`: its own, else the common one."""
        return self.weights.get(task, self.weight)


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
