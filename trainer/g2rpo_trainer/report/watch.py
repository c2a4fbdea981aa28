"""Warnings of a run, task by task, computed from the stream of its metrics.

A check looks at the last steps of one task and says what is wrong in all of them. Its warning
begins once, and ends when the check has found nothing for some steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from g2rpo_trainer.config.keys import joined_key

Bounds = tuple[float, float] | None
"""Lower and upper bound of a task's entropy in nats, or None where nothing holds it there."""

# Steps of a task in a row that a check must find wrong. A task without signal may be unlucky for
# some steps, and a length needs time to move.
_SHORT, _LONG = 10, 20
# Steps without a finding after which a warning ends: one near its limit would come and go.
_QUIET = 5
# Share of responses that are cut off from which it is a warning: below, it is the tail.
_MANY_CUT_OFF = 0.1
# A length moves towards its target if its distance falls by so much from one half to the other.
_MOVES = 0.05


class TaskStep(NamedTuple):
    """Metrics of one task in one step; NaN for those that a run does not have."""

    step: int
    reward: float  # mean over the responses, as the accuracy
    accuracy: float
    without_signal: float  # share of the prompts whose responses all got the same reward
    cut_off: float  # share of the responses cut off at their length limit
    entropy: float  # mean token entropy [nats]
    length: float  # mean length, and the ends of its target [tokens]
    low: float
    high: float


class TaskWarning(NamedTuple):
    """One thing that is wrong with a task."""

    task: str
    kind: str  # name of the check
    text: str  # the finding, in numbers
    advice: str  # what to try
    step: int  # at which it was found last


@dataclass(frozen=True)
class Span:
    """A warning with the steps, `first` to `last`, in which it held; `last` is None at the end."""

    warning: TaskWarning
    first: int
    last: int | None


def task_step(step: int, metrics: Mapping[str, float], task: str) -> TaskStep | None:
    """Return the metrics of a task in a step, or None if the step has no response of it.

    Examples
    --------
    >>> task_step(3, {"reward/ocr": 0.5, "reward/maths": 0.25}, "ocr").reward
    0.5
    >>> task_step(3, {"reward/ocr": 0.5}, "maths") is None
    True
    """
    if f"reward/{task}" not in metrics:
        return None
    names = (
        "reward",
        "rewards/accuracy/mean",
        "frac_reward_zero_std",
        "completions/clipped_ratio",
        "entropy",
        "completions/mean_length",
        "length_target/low",
        "length_target/high",
    )
    return TaskStep(step, *(metrics.get(f"{name}/{task}", math.nan) for name in names))


def find_warnings(task: str, steps: Sequence[TaskStep], bounds: Bounds = None) -> list[TaskWarning]:
    """Return what is wrong with a task, from its last steps: oldest first, the last 20 decide.

    The bounds are those of its entropy.

    Examples
    --------
    >>> wrong = TaskStep(1, 0.1, 0.0, 0.5, 0.0, 0.4, 12.0, 9.0, 24.0)
    >>> [each.text for each in find_warnings("ocr", [wrong] * 10)]
    ['accuracy 0 in each of the last 10 steps: only the form of the answers is rewarded']
    >>> find_warnings("ocr", [wrong] * 9)
    []
    """
    found = []
    for kind, count, check in _CHECKS:
        last = steps[-count:]
        result = check(task, last, bounds) if len(last) == count else None
        if result is not None:
            found.append(TaskWarning(task, kind, *result, steps[-1].step))
    return found


class Watch:
    """The warnings of a run as its steps come; entropy bounds are of the tasks that have some.

    Examples
    --------
    >>> watch = Watch(["ocr"])
    >>> metrics = {"reward/ocr": 0.1, "completions/clipped_ratio/ocr": 0.5}
    >>> begun = [watch.step(step, metrics)[0] for step in range(1, 13)]
    >>> [number for number, warnings in enumerate(begun, 1) if warnings]
    [10]
    """

    def __init__(self, tasks: Iterable[str], bounds: Mapping[str, Bounds] | None = None) -> None:
        self._bounds = bounds or {}
        self._steps: dict[str, deque[TaskStep]] = {task: deque(maxlen=_LONG) for task in tasks}
        self._active: dict[tuple[str, str], TaskWarning] = {}
        self._silent: dict[tuple[str, str], int] = {}  # steps since the check found it last

    @property
    def active(self) -> list[TaskWarning]:
        """Warnings that hold now, with today's numbers."""
        return list(self._active.values())

    def step(
        self, step: int, metrics: Mapping[str, float]
    ) -> tuple[list[TaskWarning], list[TaskWarning]]:
        """Take the metrics of a step; return the warnings that begin and those that end with it."""
        begun: list[TaskWarning] = []
        ended: list[TaskWarning] = []
        for task, steps in self._steps.items():
            if (taken := task_step(step, metrics, task)) is None:
                continue
            steps.append(taken)
            found = find_warnings(task, list(steps), self._bounds.get(task))
            by_key = {(task, warning.kind): warning for warning in found}
            begun += [warning for key, warning in by_key.items() if key not in self._active]
            self._active |= by_key
            self._silent |= dict.fromkeys(by_key, 0)
            for key in [key for key in self._active if key[0] == task and key not in by_key]:
                self._silent[key] += 1
                if self._silent[key] == _QUIET:
                    ended.append(self._active.pop(key))
        return begun, ended


def spans(
    records: Iterable[Mapping[str, float]],
    tasks: Iterable[str],
    bounds: Mapping[str, Bounds] | None = None,
) -> list[Span]:
    """Return all warnings of a run, in the order in which they began.

    The records are the metrics of its steps, each with ``step``.
    """
    watch = Watch(tasks, bounds)
    begun: dict[tuple[str, str], int] = {}
    ended: list[Span] = []
    for record in records:
        step = int(record["step"])
        starts, ends = watch.step(step, record)
        for warning in ends:
            since = begun.pop((warning.task, warning.kind))
            ended.append(Span(warning, since, warning.step))
        begun |= {(warning.task, warning.kind): step for warning in starts}
    holding = [Span(each, begun[each.task, each.kind], None) for each in watch.active]
    return sorted([*ended, *holding], key=lambda span: span.first)


Found = tuple[str, str] | None


def _accuracy(task: str, steps: Sequence[TaskStep], bounds: Bounds) -> Found:
    if any(step.accuracy != 0 for step in steps):  # NaN is no accuracy at all
        return None
    rewarded = any(step.reward > 0 for step in steps)
    what = "only the form of the answers is rewarded" if rewarded else "nothing is rewarded"
    return (
        f"accuracy 0 in each of the last {len(steps)} steps: {what}",
        "look at the responses beside the right answers (g2rpo eval RUN --samples FILE): if they "
        "are right, problem type or answers of the data are wrong; if not, take easier items or a "
        "stronger model",
    )


def _signal(task: str, steps: Sequence[TaskStep], bounds: Bounds) -> Found:
    if any(step.without_signal != 1 for step in steps):
        return None
    reward = _mean(step.reward for step in steps)
    return (
        f"no signal in {len(steps)} steps: all responses to a prompt get the same reward "
        f"(mean {reward:.3f}), so nothing is learned",
        "always right: harder items; never right: easier items or a stronger model; always the "
        "same text: a higher rollout.temperature or more rollout.num_generations",
    )


def _cut_off(task: str, steps: Sequence[TaskStep], bounds: Bounds) -> Found:
    if not all(step.cut_off >= _MANY_CUT_OFF for step in steps):
        return None
    share = _mean(step.cut_off for step in steps)
    return (
        f"{share:.0%} of the responses were cut off at their limit in the last {len(steps)} steps",
        f"raise {joined_key(('rollout', 'limits', task))} or rollout.max_completion_length; if "
        "responses repeat themselves up to any limit, a lower rollout.temperature or learning rate",
    )


def _entropy(task: str, steps: Sequence[TaskStep], bounds: Bounds) -> Found:
    if bounds is None:
        return None
    low, high = bounds
    is_low = all(step.entropy < low for step in steps)
    if not is_low and not all(step.entropy > high for step in steps):
        return None
    side = "below" if is_low else "above"
    more = "a lower optimization.learning_rate" if is_low else "a lower rollout.temperature"
    return (
        f"entropy {_mean(step.entropy for step in steps):.3f} nats is {side} its bounds "
        f"{low:g}–{high:g} in each of the last {len(steps)} steps",
        f"a larger {joined_key(('entropy', 'weights', task))}, entropy.control=adaptive, or {more}",
    )


def _length(task: str, steps: Sequence[TaskStep], bounds: Bounds) -> Found:
    distances = [max(step.low - step.length, step.length - step.high) for step in steps]
    if not all(distance > 0 for distance in distances):  # NaN without a target
        return None
    half = len(steps) // 2
    before, now = _mean(distances[:half]), _mean(distances[half:])
    if now <= (1 - _MOVES) * before:
        return None
    last = steps[-1]
    side = "under" if last.length < last.low else "over"
    length = _mean(step.length for step in steps[half:])
    return (
        f"length {length:.1f} tokens is {side} its target {last.low:g}–{last.high:g} and has not "
        f"come nearer for {len(steps)} steps",
        "a larger length.weight; with length.only_right few right responses pull little; or "
        f"another {joined_key(('length', 'targets', task))}, or length.calibrate=true",
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


Check = Callable[[str, Sequence[TaskStep], Bounds], Found]

_CHECKS: tuple[tuple[str, int, Check], ...] = (
    ("accuracy", _SHORT, _accuracy),
    ("signal", _LONG, _signal),
    ("cut off", _SHORT, _cut_off),
    ("entropy", _SHORT, _entropy),
    ("length", _LONG, _length),
)
