"""The sections of a run's description: one frozen model each, every field with its unit."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from g2rpo._suggest import did_you_mean, unknown_name

__all__ = [
    "BUILTIN_SOURCES",
    "BUILTIN_TASKS",
    "DEFAULT_LENGTH_TARGETS",
    "Data",
    "Entropy",
    "Estimator",
    "Length",
    "Mixing",
    "Model",
    "Optimization",
    "Output",
    "Rollout",
]

BUILTIN_TASKS = ("grounding", "vqa", "spatial", "chart", "ocr", "maths")
"""Names of the built-in tasks. Kept here so that reading a description loads no task."""

BUILTIN_SOURCES = ("builtin",)
"""Names of the sources of prompts that are neither files nor data sets."""

RECORD_COLUMNS = (
    "problem",
    "prompt",
    "images",
    "videos",
    "answer",
    "problem_type",
    "data_type",
    "task_type",
    "options",
)
"""What a record is made of. Kept here so that reading a description loads no data."""

LengthThresholds = tuple[float, float, float, float]

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

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


def _off(value: Any) -> Any:
    # YAML 1.1 reads a bare `off` as False, and `--set length.mode=off` should do what it says.
    return "off" if value is False else value


def _is_path(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix.lower() in (".jsonl", ".json", ".parquet") or path.is_dir()


def _none(value: Any) -> Any:
    # YAML's null is `null` or `~`; people who come from Python write None.
    return None if value in ("none", "None") else value


class Section(BaseModel):
    """A part of the description: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Section):
    """Which policy is trained, and where."""

    name: str = Field(
        default="builtin",
        min_length=1,
        description="`builtin` (the policy inside the package), a folder, or a Hugging Face model",
    )
    device: str = Field(
        default="auto",
        description="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, … or `mps`",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="floating dtype of the weights"
    )

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"unknown device {device!r}; name auto, cpu, mps, cuda or cuda:1, …")
        return device


class Mixing(Section):
    """How often each task is asked."""

    temperature: float = Field(
        default=1.0,
        gt=0,
        description="shares are sizes to the power 1/temperature: 1 by size, more is more even",
    )
    weights: dict[str, float] = Field(
        default={}, description="task: share in any unit, for every task, in place of its size"
    )

    @field_validator("weights")
    @classmethod
    def _weights_are_shares(cls, weights: dict[str, float]) -> dict[str, float]:
        for task, weight in weights.items():
            if weight < 0:
                raise ValueError(f"{task} is {weight:g}, but must be 0 or more")
        if weights and not any(weights.values()):
            raise ValueError("are all 0, but one at least must be more")
        return weights


class Data(Section):
    """What the policy is asked."""

    source: str = Field(
        default="builtin",
        min_length=1,
        description=(
            "`builtin`, a file (.jsonl, .json, .parquet), a folder, a data set `owner/name` of the "
            "hub, or `reasoning-gym:NAME,NAME`"
        ),
    )
    tasks: list[str] = Field(
        default=list(BUILTIN_TASKS),
        description="names of the tasks that are trained; left out, all that the source has",
    )
    level: int | None = Field(
        default=None,
        ge=1,
        le=3,
        description="difficulty of built-in tasks, 1 to 3; null is each task's own mix",
    )
    split: str | None = Field(
        default=None, description="split of a data set with splits; null is `train`"
    )
    subset: str | None = Field(
        default=None, description="subset (configuration) of a data set of the hub"
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of a data set of the hub"
    )
    columns: dict[str, str] = Field(
        default={}, description="part of a record: the column in which it stands"
    )
    problem_type: str | None = Field(
        default=None, description="problem type of records that name none"
    )
    image_dir: str | None = Field(
        default=None, description="folder of the images; null is that of the file"
    )
    skip_broken: bool = Field(
        default=False, description="leave out and count records that cannot be used"
    )
    mixing: Mixing = Field(default=Mixing(), description="how often each task is asked")
    eval_fraction: float = Field(
        default=0.125,
        gt=0,
        lt=1,
        description="share of the records that is held out; of built-in tasks it is 1/8",
    )
    eval_items: int = Field(default=128, ge=1, description="held-out items of each task [items]")
    eval_generations: int = Field(
        default=8, ge=1, description="responses sampled to each held-out item [rollouts]"
    )

    @model_validator(mode="before")
    @classmethod
    def _other_sources_have_their_own_tasks(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("source", "builtin") != "builtin":
            return {"tasks": [], **values}
        return values

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if source in BUILTIN_SOURCES or _is_path(source) or _HUB.fullmatch(source):
            return source
        kind, colon, names = source.partition(":")
        if colon and kind == "reasoning-gym":
            if not all(name.strip() for name in names.split(",")):
                raise ValueError(
                    f"{source!r} must be reasoning-gym:NAME or reasoning-gym:NAME,NAME"
                )
            return source
        hint = did_you_mean(source, [*BUILTIN_SOURCES, "reasoning-gym:NAME"])
        raise ValueError(
            f"unknown source {source!r}{hint} (there are: builtin, reasoning-gym:NAME, a file "
            ".jsonl, .json or .parquet, a folder, and owner/name of a data set of the hub)"
        )

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known(cls, tasks: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("source") == "builtin":
            if not tasks:
                raise ValueError("must have at least one entry")
            for task in tasks:
                if task not in BUILTIN_TASKS:
                    raise ValueError(unknown_name("task", task, BUILTIN_TASKS))
        repeated = sorted({task for task in tasks if tasks.count(task) > 1})
        if repeated:
            raise ValueError(f"must name each task once, but repeats {', '.join(repeated)}")
        return tasks

    @field_validator("columns")
    @classmethod
    def _columns_are_parts_of_a_record(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in RECORD_COLUMNS:
                raise ValueError(unknown_name("part of a record", name, RECORD_COLUMNS))
        return columns


class Rollout(Section):
    """How responses are sampled."""

    num_generations: int = Field(default=8, ge=2, description="responses to each prompt [rollouts]")
    prompts_per_step: int = Field(default=24, ge=1, description="prompts in each step [prompts]")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    max_completion_length: int = Field(default=48, ge=1, description="longest response [tokens]")
    shared_prompts: Annotated[Literal["auto", "off"], BeforeValidator(_off)] = Field(
        default="auto",
        description="compute a prompt once for all of its responses where the model allows it",
    )


class Estimator(Section):
    """How rewards become advantages."""

    name: str = Field(default="gaussian", description="a name in `g2rpo.ESTIMATORS`")
    task_stage: Annotated[
        Literal["standardize", "match", "match-all"] | None, BeforeValidator(_none)
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

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        # Read at the time of the check, so that a registered estimator counts.
        from g2rpo.advantages import ESTIMATORS

        if name not in ESTIMATORS:
            raise ValueError(unknown_name("estimator", name, ESTIMATORS))
        return name


class Length(Section):
    """Shaping of the response length, task by task."""

    mode: Annotated[Literal["term", "reward", "off"], BeforeValidator(_off)] = Field(
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


class Optimization(Section):
    """How advantages change the policy."""

    steps: int = Field(default=280, ge=1, description="length of the run [steps]")
    learning_rate: float = Field(
        default=1.5e-4, gt=0, description="AdamW's learning rate after warm-up"
    )
    updates_per_batch: int = Field(
        default=1, ge=1, description="optimiser updates that share a step's rollouts [updates]"
    )
    micro_batch_size: int = Field(
        default=96, ge=1, description="rollouts in one forward and backward pass [rollouts]"
    )
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="clip range of the ratio below 1")
    epsilon_high: float = Field(default=0.3, gt=0, description="clip range of the ratio above 1")
    dual_clip: float | None = Field(
        default=3.0,
        gt=1,
        description="ratio at which negative advantages stop counting; null for never",
    )
    beta: float = Field(
        default=0.0, ge=0, description="weight of the KL penalty; 0 loads no reference"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="norm that gradients are clipped to"
    )
    schedule: Literal["constant", "linear"] = Field(
        default="linear",
        description="learning rate after warm-up: constant, or falling to 0 at the last step",
    )
    warmup_steps: int = Field(
        default=5, ge=0, description="linear rise of the learning rate [steps]"
    )
    loss_type: Literal["ppo", "gspo", "cispo", "sapo"] = Field(
        default="ppo", description="the surrogate of the policy term"
    )
    aggregation: Literal["token", "sequence", "constant"] = Field(
        default="token", description="what the loss is a mean over"
    )


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
