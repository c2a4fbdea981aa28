"""The options under ``algorithm.g2rpo``, with the names and defaults of the reference trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from g2rpo import LengthCalibration, ShapingOptions
from g2rpo.shaping_options import length_targets

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
    """Target lengths: task -> [minimum, low, high, maximum] in tokens, `reasoning` or `direct`.

    ``calibration`` holds options of :class:`g2rpo.LengthCalibration`.
    """

    mode: str = "term"
    weight: float = 1.0
    only_right: bool = True
    targets: dict[str, Any] = field(default_factory=dict)
    calibrate: bool = False
    calibration: dict[str, Any] = field(default_factory=dict)


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
    def shapes_length(self) -> bool:
        """Whether any length is rewarded."""
        length = self.length
        return length.mode != "off" and (bool(length.targets) or length.calibrate)

    @property
    def components(self) -> list[str]:
        """Names of the components of the reward that are needed one by one."""
        names = list(self.rewards.weights)
        asks_for_right = self.length.only_right or self.length.calibrate
        if self.shapes_length and asks_for_right and "accuracy" not in names:
            names.append("accuracy")
        return names

    def shaping(self, longest: int, tasks: Sequence[str] = ()) -> ShapingOptions:
        """Return the options of the core's shaping.

        Parameters
        ----------
        longest : int
            Longest response in tokens, for targets that follow from it.
        tasks : sequence of str
            The tasks, where the options list none.

        Raises
        ------
        TypeError, ValueError
            If an option is wrong; the text begins with its key.
        """
        estimator, length, entropy = self.estimator, self.length, self.entropy
        keys = {name: f"{SECTION}.{key}" for name, key in _KEYS.items()}
        if estimator.name == "gaussian":
            keys["estimator_options"] = f"{SECTION}.estimator"
        calibration = LengthCalibration.of(length.calibration, key=f"{SECTION}.length.calibration")
        return ShapingOptions(
            tasks=self.tasks or tasks or ("all",),
            estimator=estimator.name,
            estimator_options=estimator.keywords,
            reward_weights=list(self.rewards.weights.values()) or None,
            length_mode=cast(Any, length.mode),
            length_weight=length.weight,
            length_targets=length_targets(length.targets, longest, key=keys["length_targets"]),
            length_only_right=length.only_right,
            length_calibration=calibration if length.calibrate else None,
            entropy_weight=entropy.weight,
            entropy_weights=entropy.weights,
            entropy_low=entropy.low,
            entropy_high=entropy.high,
            entropy_bounds=entropy.bounds,
            entropy_control=cast(Any, entropy.control),
            entropy_control_rate=entropy.control_rate,
            entropy_max_weight=entropy.max_weight,
            task_weights=self.task_weights.weights,
            keys=keys,
        )


_KEYS = {each.name: each.name.replace("_", ".", 1) for each in fields(ShapingOptions)} | {
    "estimator": "estimator.name",
    "reward_weights": "rewards.weights",
    "task_weights": "task_weights.weights",
}
"""Key of each option of the core's shaping."""


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
    if options.length.mode == "False":  # what YAML makes of a bare off
        options.length.mode = "off"
    _check(options)
    try:
        options.shaping(1)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return options


def _check(options: Options) -> None:
    """Raise if options contradict each other."""
    estimator, name = options.estimator, options.estimator.name
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
    if options.tasks:
        return
    for key, named in (
        ("length.targets", options.length.targets),
        ("entropy.bounds", options.entropy.bounds),
        ("entropy.weights", options.entropy.weights),
        ("task_weights.weights", options.task_weights.weights),
    ):
        if named:
            raise ValueError(f"{SECTION}.{key} names tasks, so {SECTION}.tasks must list all")
    adapts = options.length.calibrate or options.entropy.control == "adaptive"
    if name == "ema-grpo" or adapts:
        raise ValueError(
            f"{SECTION}.tasks must list all tasks for ema-grpo, entropy.control=adaptive and "
            "length.calibrate, which remember something of each"
        )
