"""Shaping once more, as slow and plain as it can be: loops over rollouts, in double precision."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np


def matched(values: list[float]) -> list[float]:
    """Return the mean of each value's midpoint quantiles among those that are present."""
    present = sorted(v for v in values if not math.isnan(v))
    quantiles = [NormalDist().inv_cdf((k + 0.5) / len(present)) for k in range(len(present))]
    of_value: dict[float, list[float]] = {}
    for value, quantile in zip(present, quantiles, strict=True):
        of_value.setdefault(value, []).append(quantile)
    means = {value: sum(block) / len(block) for value, block in of_value.items()}
    return [0.0 if math.isnan(v) else means[v] for v in values]


def gaussian(rewards: list[float], groups: list[int], tasks: list[int]) -> list[float]:
    """Match inside the groups, then divide by the task's root mean square."""
    found = [0.0] * len(rewards)
    squares: dict[int, list[float]] = {}
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group]
        for i, z in zip(rows, matched([rewards[i] for i in rows]), strict=True):
            found[i] = z
        present = [i for i in rows if not math.isnan(rewards[i])]
        if len({rewards[i] for i in present}) > 1:
            squares.setdefault(tasks[rows[0]], []).extend(found[i] ** 2 for i in present)
    roots = {task: math.sqrt(sum(each) / len(each)) for task, each in squares.items()}
    return [z / roots.get(task, 1.0) for z, task in zip(found, tasks, strict=True)]


def deviations(rewards: list[float], groups: list[int]) -> tuple[list[float], list[float]]:
    """Return each reward less its group's mean, and the group's unbiased deviation."""
    centred, spread = [0.0] * len(rewards), [0.0] * len(rewards)
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group and not math.isnan(rewards[i])]
        if len(rows) < 2:
            continue
        mean = sum(rewards[i] for i in rows) / len(rows)
        variance = sum((rewards[i] - mean) ** 2 for i in rows) / (len(rows) - 1)
        for i in rows:
            centred[i], spread[i] = rewards[i] - mean, math.sqrt(variance)
    return centred, spread


class ShapingOracle:
    """Does what :class:`g2rpo.Shaping` does, for three of the estimators."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.targets: list[list[float] | None] = [
            list(options.length_targets[t].thresholds) if t in options.length_targets else None
            for t in options.tasks
        ]
        self.steps = 0
        self.moments: list[tuple[float, float] | None] = [None] * len(options.tasks)
        self.weights = [
            options.entropy_weights.get(t, options.entropy_weight) for t in options.tasks
        ]

    def step(
        self, rewards: Any, groups: Any, tasks: Any, lengths: Any, accuracy: Any, absent: Any
    ) -> tuple[list[float], list[float] | None, list[float] | None]:
        """Return advantages of the rewards, those of the lengths, and the length rewards."""
        options, rows = self.options, range(len(rewards))
        groups, tasks = list(map(int, groups)), list(map(int, tasks))
        nan = math.nan
        right = [not absent[i] and accuracy[i] > 0 for i in rows]
        shaped = None
        if options.length_mode != "off":
            warm = options.length_calibration
            closed = warm is not None and self.steps < warm.warmup_steps
            shaped = []
            for i in rows:
                target = self.targets[tasks[i]]
                gate = right[i] or not options.length_only_right
                counts = target is not None and gate and not absent[i] and not closed
                shaped.append(self.trapezoid(float(lengths[i]), target) if counts else nan)
            if warm is not None:
                self.calibrate(lengths, accuracy, absent, right, tasks)
        total = []
        for i in rows:
            terms = [
                (w, float(r))
                for w, r in zip(options.reward_weights, rewards[i], strict=True)
                if not absent[i] and not math.isnan(r)
            ]
            value = sum(w * r for w, r in terms) if terms else nan
            if options.length_mode == "reward" and shaped and not math.isnan(shaped[i]):
                value += options.length_weight * shaped[i]
            total.append(value)
        policy = self.estimate(total, groups, tasks)
        length = gaussian(shaped, groups, tasks) if options.length_mode == "term" else None
        return policy, length, shaped

    def estimate(self, total: list[float], groups: list[int], tasks: list[int]) -> list[float]:
        if self.options.estimator == "gaussian":
            return gaussian(total, groups, tasks)
        centred, spread = deviations(total, groups)
        if self.options.estimator == "grpo":
            return [c / (s + 1e-6) for c, s in zip(centred, spread, strict=True)]
        decay = self.options.estimator_options["decay"]
        for task in range(len(self.moments)):
            values = [r for r, t in zip(total, tasks, strict=True) if t == task and r == r]
            if values:
                new = np.mean(values), np.mean(np.square(values))
                old = self.moments[task] or new
                self.moments[task] = tuple(
                    decay * a + (1 - decay) * b for a, b in zip(old, new, strict=True)
                )
        sigmas = [max(1e-3, math.sqrt(max(0.0, m[1] - m[0] ** 2))) if m else 1.0
                  for m in self.moments]  # fmt: skip
        return [
            max(-5.0, min(5.0, c / (sigmas[t] + 1e-6))) for c, t in zip(centred, tasks, strict=True)
        ]

    @staticmethod
    def trapezoid(length: float, target: list[float]) -> float:
        minimum, low, high, maximum = target
        if length < minimum or length > maximum:
            return 0.0
        if length < low:
            return (length - minimum) / (low - minimum)
        if length > high and math.isfinite(maximum):
            return (maximum - length) / (maximum - high)
        return 1.0

    def calibrate(
        self, lengths: Any, accuracy: Any, absent: Any, right: list[bool], tasks: list[int]
    ) -> None:
        options = self.options.length_calibration
        for task in range(len(self.targets)):
            given = [i for i, t in enumerate(tasks) if t == task and not absent[i]]
            given = [i for i in given if not math.isnan(accuracy[i])]
            if not given:
                continue
            mean = sum(float(accuracy[i]) for i in given) / len(given)
            learned = [float(lengths[i]) for i in given if right[i] and accuracy[i] >= mean]
            if len(learned) < options.min_samples:
                continue
            seen, old = np.quantile(learned, options.quantiles).tolist(), self.targets[task]
            if old is None:
                self.targets[task] = seen
                continue
            moved = []
            for a, b in zip(old, seen, strict=True):
                step = max(1.0, options.max_change * a)
                new = options.decay * a + (1 - options.decay) * b
                moved.append(a if math.isinf(a) else max(a - step, min(a + step, new)))
            self.targets[task] = moved
        self.steps += 1

    def adapt(self, means: Any, present: Any) -> None:
        """Adapt the entropy weights."""
        options = self.options
        for k, task in enumerate(options.tasks):
            default = (options.entropy_low, options.entropy_high)
            low, high = options.entropy_bounds.get(task, default)
            if present[k]:
                outside = max(means[k] - high, low - means[k])
                moved = self.weights[k] + options.entropy_control_rate * outside
                self.weights[k] = min(options.entropy_max_weight, max(0.0, moved))
