"""The section ``data``: source, tasks and mixture of the prompts, and evaluation."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from g2rpo._shown import shown
from g2rpo._suggest import did_you_mean, unknown_name

from .section import Section

BUILTIN_TASKS = ("grounding", "vqa", "spatial", "chart", "ocr", "maths")
"""Names of the built-in image tasks; here, so that reading a configuration loads no task."""

BUILTIN_TEXT_TASKS = ("arithmetic", "box", "bars", "sorting")
"""Names of the built-in tasks of text."""

BUILTIN_SOURCES = {"builtin": BUILTIN_TASKS, "builtin-text": BUILTIN_TEXT_TASKS}
"""Built-in source -> names of its tasks."""

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
"""Parts of a record; here, so that reading a configuration loads no data."""

DATA_SUFFIXES = (".jsonl", ".json", ".parquet")
"""Suffixes of data files."""

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Mixing(Section):
    """Shares of the tasks among the prompts."""

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
    """Source, tasks and mixture of the prompts, and held-out items."""

    source: str = Field(
        default="builtin",
        min_length=1,
        description=(
            "`builtin`, `builtin-text`, a file (.jsonl, .json, .parquet), a folder, a data set "
            "`owner/name` of the hub, or `reasoning-gym:NAME,NAME`"
        ),
    )
    tasks: list[str] = Field(
        default=[],
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
    video_dir: str | None = Field(
        default=None, description="folder of the videos; null is that of the images"
    )
    video_frames: int = Field(
        default=16, ge=2, description="most frames that a model sees of a video [frames]"
    )
    skip_broken: bool = Field(
        default=False, description="leave out and count records that cannot be used"
    )
    mixing: Mixing = Mixing()
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
    eval_batch_size: int = Field(
        default=64, ge=1, description="held-out items that are answered at once [items]"
    )
    eval_temperature: float | None = Field(
        default=None,
        ge=0,
        description="sampling temperature; null is that of the rollouts, 0 the likeliest token",
    )

    @model_validator(mode="before")
    @classmethod
    def _add_tasks_of_builtin_sources(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        tasks = BUILTIN_SOURCES.get(str(values.get("source", "builtin")), ())
        return {"tasks": list(tasks), **values}

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, source: str) -> str:
        if source in BUILTIN_SOURCES or _is_path(source):
            return source
        if os.path.isfile(os.path.expanduser(source)):  # unlike pathlib, False for names too long
            *first, last = DATA_SUFFIXES
            raise ValueError(
                f"{source!r} is a file, but not of a format that is read here; save its records "
                f"as {', '.join(first)} or {last}"
            )
        if _HUB.fullmatch(source):
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
            f"unknown source {shown(source)}{hint} (there are: builtin, builtin-text, "
            "reasoning-gym:NAME, a file .jsonl, .json or .parquet, a folder, and owner/name of a "
            "data set of the hub)"
        )

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known(cls, tasks: list[str], info: ValidationInfo) -> list[str]:
        known = BUILTIN_SOURCES.get(info.data.get("source", ""))
        if known is not None:
            if not tasks:
                raise ValueError("must have at least one entry")
            for task in tasks:
                if task not in known:
                    raise ValueError(unknown_name("task", task, known))
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


def _is_path(source: str) -> bool:
    path = os.path.expanduser(source)
    return Path(path).suffix.lower() in DATA_SUFFIXES or os.path.isdir(path)
