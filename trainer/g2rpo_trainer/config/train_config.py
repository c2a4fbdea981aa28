"""One configuration of a run: read from YAML, changed by flags, checked once.

Four layers, later ones win: the defaults of the sections, those of a pretrained model in `presets`,
a YAML file, and single values by dotted key (``optimization.steps=50``, as `keys` reads it). A
mapping such as ``length.targets`` in a file replaces the default mapping whole; a dotted key
changes one entry of it.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from g2rpo._shown import clipped, shown
from g2rpo._suggest import did_you_mean
from g2rpo_trainer.config.keys import QUOTING, joined_key, split_key, split_setting
from g2rpo_trainer.config.presets import presets
from g2rpo_trainer.errors import RunError

from .data import BUILTIN_SOURCES, Data
from .entropy import Entropy
from .estimator import Estimator
from .length import Length
from .model import Model
from .optimization import Optimization
from .output import Output
from .rewards import Rewards
from .rollout import Rollout
from .section import Section
from .task_weights import TaskWeights

__all__ = ["TrainConfig", "dump_config", "load_config", "parse_setting"]

Parts = tuple[str, ...]
"""A dotted key, taken apart."""


class TrainConfig(Section):
    """Everything that decides a run: model, data, estimator, shaping, optimisation, output."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of data, sampling and order")
    model: Model = Field(default=Model(), description="which policy is trained, and where")
    data: Data = Field(default=Data(), description="what the policy is asked")
    rollout: Rollout = Field(default=Rollout(), description="how responses are sampled")
    rewards: Rewards = Field(
        default=Rewards(), description="what a response is worth, and what scoring it may cost"
    )
    estimator: Estimator = Field(default=Estimator(), description="how rewards become advantages")
    length: Length = Field(default=Length(), description="shaping of the response length")
    entropy: Entropy = Field(default=Entropy(), description="bounds of the token entropy")
    task_weights: TaskWeights = Field(
        default=TaskWeights(), description="how much each task counts in the surrogates"
    )
    optimization: Optimization = Field(
        default=Optimization(), description="how advantages change the policy"
    )
    output: Output = Field(default=Output(), description="what the run leaves behind")

    @model_validator(mode="before")
    @classmethod
    def _only_builtin_tasks_have_targets_by_default(cls, values: Any) -> Any:
        # A task of one's own may carry the name of a built-in one, with answers of other lengths.
        if not isinstance(values, dict):
            return values
        data, length = values.get("data", {}), values.get("length", {})
        source = data.source if isinstance(data, Data) else _of(data, "source", "builtin")
        if isinstance(length, Length):
            length = length.model_dump(exclude_unset=True)
        if str(source) in BUILTIN_SOURCES or not isinstance(length, dict):
            return values
        return {**values, "length": {"targets": {}, **length}}

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.entropy.low > self.entropy.high:
            raise ValueError(
                f"entropy.low {self.entropy.low} is above entropy.high {self.entropy.high}; "
                "bounds must ascend"
            )
        if self.optimization.updates_per_batch > self.rollout.prompts_per_step:
            raise ValueError(
                f"optimization.updates_per_batch {self.optimization.updates_per_batch} is more "
                f"than rollout.prompts_per_step {self.rollout.prompts_per_step}; "
                "an update needs at least one prompt"
            )
        if self.estimator.name == "pass@k":
            subset = int(self.estimator.options.get("k", 4))
            responses = self.rollout.num_generations
            if subset >= responses:
                raise ValueError(
                    f"estimator.options.k {subset} must be less than rollout.num_generations "
                    f"{responses}: of as many responses there is one subset, and no advantage"
                )
        if self.optimization.off_policy_mask_threshold and self._is_on_policy():
            raise ValueError(
                f"optimization.off_policy_mask_threshold is "
                f"{self.optimization.off_policy_mask_threshold:g}, but with "
                "optimization.updates_per_batch 1 and rollout.engine transformers every response "
                "is the policy's own; leave it out, or take several updates"
            )
        self.require_reachable_targets()
        return self

    def _is_on_policy(self) -> bool:
        return self.rollout.engine == "transformers" and self.optimization.updates_per_batch == 1

    def require_reachable_targets(self) -> None:
        """Raise if the longest response allowed to a task is too short for its length target.

        Raises
        ------
        RunError
            Of the tasks that are named; those of a data file may be known only once it was read.
        """
        if self.length.mode == "off":
            return
        for task in self.data.tasks:
            longest = self.rollout.limit_of(task)
            target = self.length.target_of(task, longest)
            own = ("limits", task) if task in self.rollout.limits else ("max_completion_length",)
            if target is not None and target.minimum >= longest:
                raise RunError(
                    f"{joined_key(('length', 'targets', task))} rewards nothing up to "
                    f"{target.minimum:g} tokens, but {joined_key(('rollout', *own))} is {longest}; "
                    "lower the target or raise that"
                )


def load_config(
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
) -> TrainConfig:
    """Read a run's configuration: the defaults, then a file, then `settings`, then `overrides`.

    The defaults are those of the model that is named by any of them.

    Parameters
    ----------
    path : path, optional
        YAML file; keys that it leaves out keep their defaults.
    overrides : mapping of str to object, optional
        Values by dotted key, such as ``{"optimization.steps": 50}``; a name with a dot in it stands
        in brackets and quotes, ``'rollout.limits["v1.5"]'``.
    settings : iterable of str
        The same as text, ``"optimization.steps=50"``; the right side is read as YAML.

    Returns
    -------
    TrainConfig

    Raises
    ------
    RunError
        One line for each thing that is wrong: where it stands, the dotted key, what it is, what it
        must be.

    Examples
    --------
    >>> load_config(settings=["data.tasks=[maths, ocr]"]).data.tasks
    ['maths', 'ocr']
    """
    origin: dict[Parts, str] = {}
    contents = _read_yaml(Path(path)) if path is not None else {}
    singles: list[tuple[Parts, Any]] = []
    told = [(*parse_setting(text), "--set ") for text in settings]
    told += [(key, value, "") for key, value in (overrides or {}).items()]
    for key, value, where in told:
        parts = split_key(key)
        singles.append((parts, value))
        origin[parts] = where
    values = _laid(_defaults(contents, singles), contents, singles)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        file = f"{path}: " if path is not None else ""
        lines = [_explain(details, origin, file) for details in error.errors()]
        # Two values that a tuple lacks are two errors to Pydantic and one to a reader.
        raise RunError("\n".join(dict.fromkeys(lines))) from None


def dump_config(config: TrainConfig) -> str:
    """Return the configuration as YAML that `load_config` reads back to an equal one."""
    values = config.model_dump(mode="json")
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100))


def parse_setting(text: str) -> tuple[str, Any]:
    """Split ``"a.b=value"`` into the dotted key and the value, which is read as YAML."""
    key, value = split_setting(text)
    try:
        return joined_key(split_key(key)), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RunError(f"--set {shown(text)}: {shown(value)} is not a YAML value") from None


class _Dumper(yaml.SafeDumper):
    """Writes mappings as blocks and lists on one line, as a person would."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True)
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if values is None:  # an empty file changes nothing
        return {}
    if not isinstance(values, dict):
        raise RunError(f"{path}: holds a {type(values).__name__}, but must hold keys with values")
    return values


def _defaults(contents: dict[str, Any], singles: Sequence[tuple[Parts, Any]]) -> dict[str, Any]:
    """Return what holds where nothing is said, which depends on some of what is said."""
    # The tasks are left to the section itself, which knows those of every source.
    values: dict[str, Any] = TrainConfig().model_dump(exclude={"data": {"tasks"}})
    said = _laid(values, contents, singles)
    model = said["model"]
    chosen = presets(_of(model, "name"), _of(_of(model, "lora"), "rank"))
    for key, value in chosen.items():
        _lay_key(values, split_key(key), copy.deepcopy(value))
    if str(_of(_laid(values, contents, singles)["data"], "source")) not in BUILTIN_SOURCES:
        values["length"]["targets"] = {}
    return values


def _of(section: Any, key: str, default: Any = None) -> Any:
    # What is no section at all is told by the validation later.
    return section.get(key, default) if isinstance(section, dict) else default


def _laid(
    values: dict[str, Any], file: dict[str, Any], singles: Iterable[tuple[Parts, Any]]
) -> dict[str, Any]:
    """Return a copy of the values with a file and single ones laid over them."""
    values = copy.deepcopy(values)
    for key, value in copy.deepcopy(file).items():
        section = values.get(key)
        if isinstance(section, dict) and isinstance(value, dict):
            section.update(value)
        else:
            values[key] = value
    for parts, value in singles:
        _lay_key(values, parts, copy.deepcopy(value))
    return values


def _lay_key(values: dict[str, Any], parts: Parts, value: Any) -> None:
    *parents, last = parts
    for parent in parents:
        child = values.get(parent)
        if not isinstance(child, dict):
            # An unknown parent stays in place, so that validation names it like any other key.
            child = values[parent] = {}
        values = child
    values[last] = value


def _explain(details: ErrorDetails, origin: Mapping[Parts, str], file: str) -> str:
    """Turn one of Pydantic's errors into a line: where, the key, what it is, what to do."""
    loc = tuple(str(part) for part in details["loc"])
    key = clipped(joined_key(loc))
    where = next((origin[parts] for parts in origin if loc[: len(parts)] == parts), file)
    context = details.get("ctx", {})
    # A dot in a name took it apart, so that there is a mapping where its value belongs.
    is_deeper = isinstance(details["input"], dict) and any(
        parts[: len(loc)] == loc != parts for parts in origin
    )
    hint = f"; {QUOTING}" if is_deeper and "." in key else ""
    if details["type"] == "extra_forbidden":
        return f"{where}{key}: unknown key{did_you_mean(loc[-1], _fields(loc[:-1]))}"
    if details["type"] == "value_error":  # our own text, complete in itself
        text = clipped(str(context["error"]), 800)
        return f"{where}{key}: {text}{hint}" if key else f"{file}{text}"
    value = shown(details["input"])
    if details["type"] == "literal_error":
        return f"{where}{key} is {value}, but must be {context['expected']}"
    if details["type"] == "missing":  # the only fields without a default are those of a tuple
        return f"{where}{joined_key(loc[:-1])} is {value}, but has too few values"
    wish = _WISHES.get(details["type"]) or details["msg"].replace("Input should ", "must ")
    return f"{where}{key} is {value}, but {wish}{hint}"


_WISHES = {
    "list_type": "must be a list, such as [maths, ocr]",
    "model_type": "must be a section with keys of its own",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "too_short": "must have at least one entry",
    "too_long": "has too many values",
}


def _fields(parents: Iterable[str]) -> list[str]:
    model: type[BaseModel] = TrainConfig
    for parent in parents:
        annotation = model.model_fields[parent].annotation
        assert isinstance(annotation, type)  # only sections forbid keys, so each step is one
        model = annotation
    return list(model.model_fields)
