"""The options under ``algorithm.g2rpo``, with the names and defaults of the reference trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import g2rpo
from g2rpo._suggest import unknown_name
from g2rpo.advantages import takes_lengths

SECTION = "algorithm.g2rpo"


@dataclass
class Estimator:
    """How rewards become advantages; the first four options after the name are ``gaussian``'s."""

    name: str = "gaussian"
    task_stage: str | None = "standardize"
    ties: str = "midpoint"
    resolution: float | None = None
    decoupled: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, Any]:
        """The estimator's own keywords."""
        if self.name != "gaussian":
            return dict(self.options)
        stage = None if self.task_stage in ("none", "None") else self.task_stage
        own = {"task_stage": stage, "ties": self.ties, "decoupled": self.decoupled}
        return {**own, "resolution": self.resolution}


@dataclass
class Rewards:
    """Weights of components of the reward, by their names in what ``compute_score`` returns."""

    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class Length:
    """Target lengths: task -> [minimum, low, high, maximum] in tokens, `reasoning` or `direct`."""

    mode: str = "term"
    weight: float = 1.0
    only_right: bool = True
    targets: dict[str, Any] = field(default_factory=dict)


@dataclass
class Entropy:
    """Bounds of each task's mean token entropy, in nats."""

    weight: float = 0.02
    weights: dict[str, float] = field(default_factory=dict)
    low: float = 0.05
    high: float = 0.6
    bounds: dict[str, Any] = field(default_factory=dict)
    control: str = "fixed"
    control_rate: float = 0.02
    max_weight: float = 1.0


@dataclass
class TaskWeights:
    """Factors of the tasks' advantages."""

    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class Options:
    """All options.

    Parameters
    ----------
    tasks : list of str
        The tasks, in the order of their numbers. Empty: those that each batch has.
    task_column : str
        Column of the data with each prompt's task.
    estimator, rewards, length, entropy, task_weights
        The sections, named as in the reference trainer.
    """

    tasks: list[str] = field(default_factory=list)
    task_column: str = "data_source"
    estimator: Estimator = field(default_factory=Estimator)
    rewards: Rewards = field(default_factory=Rewards)
    length: Length = field(default_factory=Length)
    entropy: Entropy = field(default_factory=Entropy)
    task_weights: TaskWeights = field(default_factory=TaskWeights)

    @property
    def shapes_entropy(self) -> bool:
        """Whether any task's entropy is to be kept in bounds."""
        return any([self.entropy.weight, *self.entropy.weights.values()])

    @property
    def shapes_length(self) -> bool:
        """Whether any task has a target length."""
        return self.length.mode != "off" and bool(self.length.targets)

    @property
    def components(self) -> list[str]:
        """Names of the components of the reward that are needed one by one."""
        names = list(self.rewards.weights)
        if self.shapes_length and self.length.only_right and "accuracy" not in names:
            names.append("accuracy")
        return names


def read_options(algorithm: Mapping[str, Any], adv_estimator: str = "g2rpo") -> Options:
    """Return the options of verl's section ``algorithm``, checked.

    Parameters
    ----------
    algorithm : mapping
        verl's section, with ours under ``g2rpo``; it may be absent.
    adv_estimator : str
        ``g2rpo``, or ``g2rpo-NAME`` to name the estimator there.

    Raises
    ------
    ValueError
        If an option is unknown, of a wrong type, or out of its range.

    Examples
    --------
    >>> read_options({"g2rpo": {"entropy": {"high": 0.5}}}, "g2rpo-gdpo").estimator.name
    Traceback (most recent call last):
        ...
    ValueError: algorithm.g2rpo.estimator: gdpo needs rewards.weights, a weight of each component
    """
    section = algorithm.get("g2rpo") or {}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Options), section)
        options: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{SECTION}: {str(error).splitlines()[0]}") from None
    named = adv_estimator.removeprefix("g2rpo").removeprefix("-")
    if named:
        options.estimator.name = named
    _check_estimator(options)
    _check_tasks(options)
    _check_shaping(options)
    return options


def _check_estimator(options: Options) -> None:
    estimator, name = options.estimator, options.estimator.name
    if name not in g2rpo.ESTIMATORS:
        raise ValueError(
            f"{SECTION}.estimator.name: {unknown_name('estimator', name, g2rpo.ESTIMATORS)}"
        )
    if (name == "gdpo" or estimator.decoupled) and not options.rewards.weights:
        what = "decoupled" if estimator.decoupled else name
        raise ValueError(
            f"{SECTION}.estimator: {what} needs rewards.weights, a weight of each component"
        )
    if estimator.decoupled and name not in ("gaussian", "gdpo"):
        raise ValueError(f"{SECTION}.estimator: {name} adds components first; leave decoupled out")
    if name == "gaussian" and estimator.options:
        raise ValueError(
            f"{SECTION}.estimator.options are those of other estimators; gaussian's stand beside "
            "it: task_stage, ties, resolution, decoupled"
        )
    if given := {"lengths", "task_weights", "component_weights"} & estimator.options.keys():
        raise ValueError(f"{SECTION}.estimator.options has {sorted(given)}, which the run gives")
    labels = np.zeros(2, dtype=np.int64)
    lengths = {"lengths": labels} if takes_lengths(g2rpo.ESTIMATORS[name]) else {}
    try:
        # The estimator itself knows best what it takes.
        rewards = np.zeros((2, 1)) if estimator.decoupled or name == "gdpo" else np.zeros(2)
        g2rpo.ESTIMATORS[name](rewards, labels, labels, **lengths, **estimator.keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{SECTION}.estimator of {name}: {error}") from None


def _check_tasks(options: Options) -> None:
    """Raise if a task is named that is none, or not all are named where it matters."""
    by_task: dict[str, Mapping[str, Any]] = {
        "length.targets": options.length.targets,
        "entropy.bounds": options.entropy.bounds,
        "entropy.weights": options.entropy.weights,
        "task_weights.weights": options.task_weights.weights,
    }
    for key, values in by_task.items():
        for task in values:
            if not options.tasks:
                raise ValueError(f"{SECTION}.{key} names tasks, so {SECTION}.tasks must list all")
            if task not in options.tasks:
                raise ValueError(f"{SECTION}.{key}: {unknown_name('task', task, options.tasks)}")
    if len(set(options.tasks)) < len(options.tasks):
        raise ValueError(f"{SECTION}.tasks must name each task once, got {options.tasks}")
    keeps = options.estimator.name == "ema-grpo" or options.entropy.control == "adaptive"
    if keeps and not options.tasks:
        raise ValueError(
            f"{SECTION}.tasks must list all tasks for ema-grpo and entropy.control=adaptive, "
            "which remember something of each"
        )


def _check_shaping(options: Options) -> None:
    entropy, length = options.entropy, options.length
    if length.mode == "False":  # what YAML makes of a bare off
        length.mode = "off"
    for key, value, known in (
        ("length.mode", length.mode, ("term", "reward", "off")),
        ("entropy.control", entropy.control, ("fixed", "adaptive")),
    ):
        if value not in known:
            raise ValueError(f"{SECTION}.{key} must be {', '.join(known)}, got {value!r}")
    for key, weights in (
        ("length", {"weight": length.weight}),
        ("entropy", {"weight": entropy.weight, **entropy.weights}),
        ("task_weights", options.task_weights.weights),
    ):
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"{SECTION}.{key}: {name} must be 0 or more, got {weight}")
    for name, bounds in {"low, high": [entropy.low, entropy.high], **entropy.bounds}.items():
        _try(f"entropy bounds {name}", lambda pair: g2rpo.EntropyBounds(*pair), bounds)
    for name, target in length.targets.items():
        _try(f"length.targets.{name}", lambda each: length_target(each, 1), target)


def length_target(value: Any, longest: int) -> g2rpo.LengthTarget:
    """Return a target: four thresholds in tokens, or what a kind makes of the longest response."""
    if value in ("reasoning", "direct"):
        of_kind: g2rpo.LengthTarget = getattr(g2rpo.LengthTarget, value)(longest)
        return of_kind
    if isinstance(value, str) or len(value) != 4:
        raise ValueError(
            f"must be [minimum, low, high, maximum], reasoning or direct, got {value!r}"
        )
    return g2rpo.LengthTarget(*(float(each) for each in value))


def _try(name: str, make: Any, value: Any) -> None:
    try:
        make(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{SECTION}: {name}: {error}") from None
