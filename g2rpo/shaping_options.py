"""The options of :class:`g2rpo.Shaping`, and the checks that configurations share with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from numbers import Real
from typing import Any, Literal, Self, TypeVar, cast

import numpy as np

from g2rpo._checks import require_choice
from g2rpo._shown import listed, shown
from g2rpo._suggest import unknown_name
from g2rpo.advantages import ESTIMATORS, takes_lengths
from g2rpo.calibration import QUANTILES, calibrate_lengths
from g2rpo.entropy import EntropyBounds
from g2rpo.length import LengthTarget
from g2rpo.task_weights import adapt_task_weights

V = TypeVar("V")


@dataclass(frozen=True)
class LengthCalibration:
    """Options by which length targets follow the lengths of right responses.

    Parameters
    ----------
    quantiles : sequence of float
        As in :func:`g2rpo.calibrate_lengths`, like the next three.
    decay : float
        Weight of the previous thresholds, in [0, 1].
    max_change : float
        Largest relative change of a threshold in one update.
    min_samples : int
        A task with fewer right responses in the batch keeps its thresholds.
    warmup_steps : int
        First batches of rollouts, in which targets are found and no length is rewarded.

    Raises
    ------
    TypeError
        If a value is of a wrong type.
    ValueError
        If a value is out of its range.

    Examples
    --------
    >>> LengthCalibration.of({"decay": 0.5}).decay
    0.5
    """

    quantiles: Sequence[float] = QUANTILES
    decay: float = 0.9
    max_change: float = 0.1
    min_samples: int = 8
    warmup_steps: int = 10

    def __post_init__(self) -> None:
        if not self.warmup_steps >= 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps!r}")
        none = np.zeros(0)
        calibrate_lengths(np.zeros((1, 4)), none, none > 0, none.astype(int), **self.keywords)

    @classmethod
    def of(cls, options: Mapping[str, Any], *, key: str = "length_calibration") -> Self:
        """Return the calibration with some options set.

        Raises
        ------
        TypeError, ValueError
            If an option is unknown or has another value. The text begins with ``key``.
        """
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"{key}: {unknown_name('option', name, known)}")
        try:
            return cls(**options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{key}: {error}") from None

    @property
    def keywords(self) -> dict[str, Any]:
        """The options of :func:`g2rpo.calibrate_lengths`."""
        return {name: value for name, value in vars(self).items() if name != "warmup_steps"}


@dataclass(frozen=True)
class ShapingOptions:
    """Options of the advantages of rewards and lengths, and of what adapts from step to step.

    Parameters
    ----------
    tasks : sequence of str
        Names of the tasks, in the order of their labels.
    estimator : str
        A name in :data:`g2rpo.ESTIMATORS`.
    estimator_options : mapping
        Its keywords, such as ``task_stage``, ``ties``, ``resolution``, ``decoupled``.
    reward_weights : sequence of float, optional
        Weight of each component, for rewards of shape (N, K); ones by default.
    length_mode : {"term", "reward", "off"}
        Length advantages beside those of the rewards, length as one more component of the reward,
        or neither. Without any target and without calibration it is off.
    length_weight : float
        Weight of the length component. That of a term is for the loss to apply.
    length_targets : mapping of str to LengthTarget
        By task, in tokens. Lengths of other tasks are not rewarded.
    length_only_right : bool
        Reward the length of a response only if its accuracy is above 0.
    length_calibration : LengthCalibration, optional
        Let the targets follow the lengths of right responses; None: they stay.
    entropy_weight : float
        Weight of each task's entropy term in the loss; 0 for none.
    entropy_weights : mapping of str to float
        By task, in place of ``entropy_weight``.
    entropy_low, entropy_high : float
        Bounds of a task's mean token entropy, in nats.
    entropy_bounds : mapping of str to (float, float)
        By task, in place of these bounds, in nats.
    entropy_control : {"fixed", "adaptive"}
        Adaptive weights rise while a task's entropy is out of its bounds, and fall inside.
    entropy_control_rate : float
        Change of an adaptive weight in a step for each nat.
    entropy_max_weight : float
        Largest adaptive weight.
    task_weights : mapping of str to float
        Factor of a task's advantages; 1 where left out.
    task_weights_adapt : int
        Steps between adaptations of the factors to the tasks' gradient norms; 0 for none.
    task_weights_rate, task_weights_low, task_weights_high : float
        ``rate``, ``low`` and ``high`` of :func:`g2rpo.adapt_task_weights`.
    keys : mapping of str to str, optional
        Names of these options in a configuration, for the texts of errors. Not kept.

    Raises
    ------
    TypeError
        If the estimator does not take an option, or a value is of a wrong type.
    ValueError
        If a name is unknown or a value out of its range.

    Examples
    --------
    >>> ShapingOptions(tasks=["maths", "ocr"], entropy_bounds={"orc": (0.1, 0.3)})
    Traceback (most recent call last):
        ...
    ValueError: entropy_bounds: unknown task 'orc'; did you mean 'ocr'? (there are: maths, ocr)
    """

    tasks: Sequence[str] = ("all",)
    estimator: str = "gaussian"
    estimator_options: Mapping[str, Any] = field(default_factory=dict)
    reward_weights: Sequence[float] | None = None
    length_mode: Literal["term", "reward", "off"] = "term"
    length_weight: float = 0.1
    length_targets: Mapping[str, LengthTarget] = field(default_factory=dict)
    length_only_right: bool = True
    length_calibration: LengthCalibration | None = None
    entropy_weight: float = 0.02
    entropy_weights: Mapping[str, float] = field(default_factory=dict)
    entropy_low: float = 0.2
    entropy_high: float = 0.6
    entropy_bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    entropy_control: Literal["fixed", "adaptive"] = "fixed"
    entropy_control_rate: float = 0.02
    entropy_max_weight: float = 1.0
    task_weights: Mapping[str, float] = field(default_factory=dict)
    task_weights_adapt: int = 0
    task_weights_rate: float = 0.5
    task_weights_low: float = 0.2
    task_weights_high: float = 5.0
    keys: InitVar[Mapping[str, str] | None] = None

    def __post_init__(self, keys: Mapping[str, str] | None) -> None:
        called = {name: name for name in _FIELDS} | dict(keys or {})
        if isinstance(self.tasks, str):
            text = f"must be a list of names, got the string {self.tasks!r}"
            raise TypeError(f"{called['tasks']} {text}")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            text = f"must name each task once, got {listed(self.tasks) or 'none'}"
            raise ValueError(f"{called['tasks']} {text}")
        for name in ("length_targets", "entropy_weights", "entropy_bounds", "task_weights"):
            for text in unknown_tasks(called[name], getattr(self, name), self.tasks):
                raise ValueError(text)
        check_estimator(self.estimator, self.estimator_options, keys=called)
        require_choice(called["length_mode"], self.length_mode, ("term", "reward", "off"))
        require_choice(called["entropy_control"], self.entropy_control, ("fixed", "adaptive"))
        for place, target in self._by_task(called, "length_targets"):
            if not isinstance(target, LengthTarget):
                raise TypeError(f"{place} must be a LengthTarget, got {shown(target)}")
        self._check_numbers(called)

    def _check_numbers(self, called: Mapping[str, str]) -> None:
        names = ("length_weight", "entropy_weight", "entropy_control_rate", "entropy_max_weight")
        numbers = [(called[name], getattr(self, name)) for name in names]
        for name in ("entropy_weights", "task_weights"):
            numbers += self._by_task(called, name)
        for place, value in numbers:
            if not _is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f"{place} must be a number of 0 or more, got {shown(value)}")
        # Where both bounds are one key, it is named once.
        common = ", ".join(dict.fromkeys((called["entropy_low"], called["entropy_high"])))
        bounds = [(common, (self.entropy_low, self.entropy_high))]
        for place, pair in bounds + self._by_task(called, "entropy_bounds"):
            _of_numbers(EntropyBounds, place, "[low, high] in nats", pair)
        every, one = self.task_weights_adapt, np.ones(1)
        if not isinstance(every, int) or every < 0:
            place = called["task_weights_adapt"]
            raise ValueError(f"{place} must be a whole number of steps, or 0, got {shown(every)}")
        adapt_task_weights(one, one, **self.task_weights_limits)  # raises if they are no limits

    def _by_task(self, called: Mapping[str, str], name: str) -> list[tuple[str, Any]]:
        values = getattr(self, name)
        return [(f"{called[name]} of {task!r}", value) for task, value in values.items()]

    @property
    def task_weights_limits(self) -> dict[str, float]:
        """The options of :func:`g2rpo.adapt_task_weights`."""
        names = ("rate", "low", "high")
        return {name: getattr(self, f"task_weights_{name}") for name in names}

    @property
    def shapes_length(self) -> bool:
        """Whether lengths are rewarded at all."""
        has_target = bool(self.length_targets) or self.length_calibration is not None
        return self.length_mode != "off" and has_target

    @property
    def shapes_entropy(self) -> bool:
        """Whether there is an entropy term, or may come to be one."""
        weights = self.of_tasks(self.entropy_weights, self.entropy_weight)
        return self.entropy_control == "adaptive" or any(weights)

    @property
    def uses_lengths(self) -> bool:
        """Whether advantages need the lengths of the responses."""
        return self.shapes_length or takes_lengths(ESTIMATORS[self.estimator])

    @property
    def uses_accuracy(self) -> bool:
        """Whether advantages need to know which responses are right."""
        asks = self.length_only_right or self.length_calibration is not None
        return self.shapes_length and asks

    def of_tasks(self, own: Mapping[str, V], common: V) -> list[V]:
        """Return the value of every task, in their order: its own, else the common one."""
        return [own.get(task, common) for task in self.tasks]


_FIELDS = tuple(each.name for each in fields(ShapingOptions))


def check_estimator(
    name: str, options: Mapping[str, Any], *, keys: Mapping[str, str] | None = None
) -> None:
    """Raise if there is no such estimator, or it does not take these options.

    The estimator itself knows best what it takes: it is called on a batch of two rollouts.

    Parameters
    ----------
    name : str
        A name in :data:`g2rpo.ESTIMATORS`.
    options : mapping
        Its keywords.
    keys : mapping of str to str, optional
        Names in the configuration for ``estimator``, ``estimator_options``, ``reward_weights`` and
        ``task_weights``, for the texts of errors.

    Raises
    ------
    TypeError
        If the estimator has no such option, or one is of a wrong type.
    ValueError
        If the name is unknown, an option out of its range, or one that is given elsewhere.

    Examples
    --------
    >>> check_estimator("grpo", {"epsilon": -1})
    Traceback (most recent call last):
        ...
    ValueError: estimator_options of 'grpo': epsilon must be finite and non-negative, got -1
    """
    called = {name: name for name in _FIELDS} | dict(keys or {})
    if name not in ESTIMATORS:
        raise ValueError(f"{called['estimator']}: {unknown_name('estimator', name, ESTIMATORS)}")
    place = called["estimator_options"]
    elsewhere = {
        "component_weights": f"set {called['reward_weights']}",
        "task_weights": f"set {called['task_weights']}",
        "lengths": "they are those of the responses",
    }
    for option, advice in elsewhere.items():
        if option in options:
            raise ValueError(f"{place} must not have {option}: {advice}")
    labels = np.zeros(2, dtype=np.int64)
    lengths = {"lengths": labels} if takes_lengths(ESTIMATORS[name]) else {}
    try:
        ESTIMATORS[name](np.zeros(2), labels, labels, **lengths, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{place} of {name!r}: {error}") from None


def length_targets(
    values: Mapping[str, Any],
    max_completion_length: int | None = None,
    *,
    key: str = "length_targets",
) -> dict[str, LengthTarget]:
    """Return length targets by task, as configurations write them.

    Parameters
    ----------
    values : mapping
        Task -> [minimum, low, high, maximum] in tokens, or ``reasoning`` or ``direct``.
    max_completion_length : int, optional
        Longest response in tokens, from which the two kinds follow; without it they are refused.
    key : str, optional
        Name of the mapping in errors.

    Raises
    ------
    TypeError
        If a value is neither a string nor a sequence of numbers.
    ValueError
        If a value is no target.

    Examples
    --------
    >>> length_targets({"ocr": [0, 0, 10, 20]})
    {'ocr': LengthTarget(minimum=0, low=0, high=10, maximum=20)}
    """
    kinds = {"reasoning": LengthTarget.reasoning, "direct": LengthTarget.direct}
    wish = "[minimum, low, high, maximum] in tokens"
    if max_completion_length is not None:
        wish += ", reasoning or direct"
    targets = {}
    for task, value in values.items():
        if isinstance(value, str) and value in kinds and max_completion_length is not None:
            targets[task] = kinds[value](max_completion_length)
        else:
            targets[task] = _of_numbers(LengthTarget, f"{key} of {task!r}", wish, value)
    return targets


def unknown_tasks(key: str, named: Iterable[str], tasks: Iterable[str]) -> Iterator[str]:
    """Yield an error text for each name under ``key`` of the configuration that is no task.

    Examples
    --------
    >>> list(unknown_tasks("length.targets", {"orc": "direct"}, ["ocr"]))
    ["length.targets: unknown task 'orc'; did you mean 'ocr'? (there are: ocr)"]
    """
    known = list(tasks)
    for name in named:
        if name not in known:
            yield f"{key}: {unknown_name('task', name, known)}"


def _of_numbers(kind: type[V], place: str, wish: str, values: Any) -> V:
    """Return a dataclass of numbers; errors say where, what it must be, and what it was."""
    count = len(fields(cast(Any, kind)))
    if isinstance(values, str) or (isinstance(values, Sequence) and len(values) != count):
        raise ValueError(f"{place} must be {wish}, got {shown(values)}")
    if not isinstance(values, Sequence) or not all(map(_is_number, values)):
        raise TypeError(f"{place} must be {wish}, got {shown(values)}")
    try:
        return kind(*values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
