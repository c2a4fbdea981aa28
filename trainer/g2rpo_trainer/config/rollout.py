"""The sections ``rollout`` and ``rewards``: how responses are sampled and scored."""

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from g2rpo.rewards.score import ACCURACY_WEIGHT, FORMAT_WEIGHT

from .section import Section, off_is_text

ImportanceMode = Literal[
    "off",
    "token_truncate",
    "token_mask",
    "token_reject",
    "sequence_truncate",
    "sequence_mask",
    "sequence_reject",
    "geometric_truncate",
    "geometric_mask",
    "geometric_reject",
]


class DynamicSampling(Section):
    """Replacement of prompts without signal before an update."""

    mode: Annotated[Literal["off", "signal", "accuracy"], BeforeValidator(off_is_text)] = Field(
        default="off",
        description="drop prompts whose rewards are all equal (`signal`), or whose mean accuracy "
        "is not inside the band (`accuracy`), and draw others",
    )
    band: tuple[float, float] = Field(
        default=(0.01, 0.99), description="mean accuracies between which a prompt is kept"
    )
    max_tries: int = Field(
        default=4, ge=1, description="most times that a step draws prompts, the first included"
    )

    @field_validator("band")
    @classmethod
    def _band_ascends(cls, band: tuple[float, float]) -> tuple[float, float]:
        if not band[0] < band[1]:
            raise ValueError(f"is {list(band)}, but must ascend")
        return band


class Rollout(Section):
    """Sampling of the training responses."""

    num_generations: int = Field(default=8, ge=2, description="responses to each prompt [rollouts]")
    prompts_per_step: int = Field(default=24, ge=1, description="prompts in each step [prompts]")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    max_prompt_length: int | None = Field(
        default=None,
        ge=1,
        description="longest prompt; null is what the response leaves of the model's context "
        "[tokens]",
    )
    max_completion_length: int = Field(default=1024, ge=1, description="longest response [tokens]")
    limits: dict[str, int] = Field(
        default={}, description="task: its longest response, where that is shorter [tokens]"
    )
    stop: str | None = Field(
        default=None,
        min_length=1,
        description="text whose completion ends a response, such as `</answer>`; null for none",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="responses sampled at once, in whole prompts; null is all, or on a GPU as many "
        "as its free memory holds [rollouts]",
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="engine that samples the training responses"
    )
    vllm_memory: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of a GPU's memory that vLLM takes; null is what the model and the "
        "responses of a step need",
    )
    vllm_adapter: Literal["merged", "request"] = Field(
        default="merged",
        description="with `model.lora` vLLM gets the sum of base and adapter, rounded to "
        "`model.dtype` (`merged`), or the adapter itself (`request`, vLLM's LoRA)",
    )
    vllm_importance_sampling_mode: Annotated[ImportanceMode, BeforeValidator(off_is_text)] = Field(
        default="sequence_mask",
        description="how the ratio of the policy to vLLM weights the surrogates: of a token, a "
        "sequence (product) or its geometric mean; brought to the bounds (`truncate`), 0 outside "
        "(`mask`), or 1 inside and 0 outside (`reject`); or not at all (`off`)",
    )
    vllm_importance_sampling_clip_min: float | None = Field(
        default=None, gt=0, description="lower bound of that ratio; null for none"
    )
    vllm_importance_sampling_clip_max: float | None = Field(
        default=3.0, gt=0, description="upper bound of that ratio; null for none"
    )
    dynamic_sampling: DynamicSampling = DynamicSampling()
    shared_prompts: Annotated[Literal["auto", "try", "off"], BeforeValidator(off_is_text)] = Field(
        default="auto",
        description="compute a prompt once for all of its responses: auto in tested architectures, "
        "try in all that pass the check at the start of a run",
    )
    compile: bool = Field(
        default=False,
        description="compile the decoding of a token with `torch.compile`, and record it as a CUDA "
        "graph on a GPU; each new number of rows takes seconds to minutes first",
    )

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        for task, limit in self.limits.items():
            if not 1 <= limit <= self.max_completion_length:
                raise ValueError(
                    f"limits.{task} is {limit}, but must be from 1 to rollout.max_completion_length"
                    f" {self.max_completion_length}"
                )
        if self.compile and self.engine == "vllm":
            raise ValueError(
                "compile is true, but must be false with engine vllm, which compiles by itself"
            )
        least = self.vllm_importance_sampling_clip_min
        most = self.vllm_importance_sampling_clip_max
        if least is not None and most is not None and least >= most:
            raise ValueError(
                f"vllm_importance_sampling_clip_min {least:g} must be below "
                f"vllm_importance_sampling_clip_max {most:g}"
            )
        if self.batch_size is not None and self.batch_size < self.num_generations:
            raise ValueError(
                f"batch_size {self.batch_size} is less than num_generations "
                f"{self.num_generations}; all responses to a prompt are sampled at once"
            )
        return self

    def limit_of(self, task: str) -> int:
        """Return the longest response to prompts of a task in tokens."""
        return self.limits.get(task, self.max_completion_length)


_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class RewardWeights(Section):
    """Weights of the components in the total reward."""

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
    def _some_weight_is_positive(self) -> Self:
        if not (self.accuracy or self.format or self.structure):
            raise ValueError("are all 0, but one at least must be more")
        return self


class Rewards(Section):
    """Reward functions, weights of their components, and processes that score."""

    functions: dict[str, str] = Field(
        default={},
        description="problem type: import path `module:function` of a reward of one's own",
    )
    weights: RewardWeights = RewardWeights()
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
