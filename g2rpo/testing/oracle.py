"""Slow reference implementation of the method in plain Python, for comparison with the core.

It shares no code with the core. Arguments and results are lists of Python floats; means and
variances are exact fractions, and square roots have fifty digits. A NaN reward is absent: it enters
no rank and no mean, and gets 0. For the baselines a group with an infinite reward has no mean and
gets NaN; ``ema_grpo_advantages`` needs finite rewards.

Examples
--------
>>> [round(a, 4) for a in match_gaussian([0.0, 0.0, 0.0, 0.0, 1.0])]
[-0.3204, -0.3204, -0.3204, -0.3204, 1.2816]
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from statistics import NormalDist
from typing import Any

__all__ = [
    "ORACLES",
    "ema_grpo_advantages",
    "gaussian_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "match_gaussian",
    "opo_advantages",
    "pass_at_k_advantages",
    "reinforce_plus_plus_advantages",
    "rloo_advantages",
]

_NORMAL = NormalDist()
_EXACT = Context(prec=50, Emax=10**6, Emin=-(10**6))

#: One reward, or the K components of one.
Rewards = Sequence[float] | Sequence[Sequence[float]]


def match_gaussian(
    values: Sequence[float],
    segments: Sequence[int] | None = None,
    *,
    ties: str = "midpoint",
    resolution: float | None = None,
) -> list[float]:
    """Map the values of every segment onto the quantiles of N(0, 1)."""
    if resolution is not None:
        values = [_round_to(value, resolution) for value in values]
    matched = [0.0] * len(values)
    for segment in _indices(segments or [0] * len(values)):
        present = sorted(values[i] for i in segment if not math.isnan(values[i]))
        for i in segment:
            if not math.isnan(values[i]):  # the block of equal values is [first, stop)
                first = present.index(values[i])
                stop = first + present.count(values[i])
                matched[i] = _block_mean(first, stop, len(present), ties)
    return matched


def gaussian_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    tasks: Sequence[int] | None = None,
    *,
    task_stage: str | None = "standardize",
    component_weights: Sequence[float] | None = None,
    decoupled: bool = False,
    ties: str = "midpoint",
    resolution: float | None = None,
) -> list[float]:
    """Match every group, then apply the task stage."""
    options: dict[str, Any] = {"ties": ties, "resolution": resolution}
    tasks = tasks or [0] * len(groups)
    if not decoupled:
        grid = _rankable(rewards, component_weights, resolution)
        present = [not math.isnan(reward) for reward in grid]
        matched = match_gaussian(grid, groups, ties=ties)
    else:
        columns, weights = _columns(rewards, component_weights)
        present = [not all(map(math.isnan, row)) for row in zip(*columns, strict=True)]
        parts = [match_gaussian(column, groups, **options) for column in columns]
        rows = [
            [w * a for w, a in zip(weights, row, strict=True)] for row in zip(*parts, strict=True)
        ]
        matched = [_unless_rounding(math.fsum(row), row) for row in rows]
    live = [False] * len(groups)
    for group in _indices(groups):
        here = [i for i in group if present[i]]
        # Components that cancel leave no signal, although their ranks differ.
        of_ranks = not decoupled and len({grid[i] for i in here}) > 1
        signal = of_ranks or (decoupled and any(matched[i] for i in here))
        for i in here:
            live[i] = signal

    if task_stage is None:
        return matched
    if task_stage == "standardize":
        return _standardised(matched, live, tasks)
    taking_part = present if task_stage == "match-all" else live
    # Rounded, since two computations of the same real number may differ in the last bit.
    again = [
        round(a, 12) + 0.0 if part else math.nan
        for a, part in zip(matched, taking_part, strict=True)
    ]
    return match_gaussian(again, tasks, ties=ties)


def grpo_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    *,
    scale: str = "group",
    epsilon: float = 1e-6,
    component_weights: Sequence[float] | None = None,
) -> list[float]:
    """Subtract the group's mean; divide by a standard deviation plus epsilon, or not."""
    summed = _one_reward(rewards, component_weights)
    advantages = [0.0] * len(summed)
    for batch in _present(summed, [0] * len(summed)):
        for here in _present(summed, groups):
            values = [summed[i] for i in here]
            std = _std([summed[i] for i in (here if scale == "group" else batch)])
            divisor = None if std is None else std + Decimal(epsilon)
            for i in here:
                by = Decimal(1) if scale == "none" else divisor
                advantages[i] = _score(summed[i], _mean(values), by)
    return advantages


def rloo_advantages(
    rewards: Rewards, groups: Sequence[int], *, component_weights: Sequence[float] | None = None
) -> list[float]:
    """Subtract the mean of the others in the group."""
    summed = _one_reward(rewards, component_weights)
    advantages = [0.0] * len(summed)
    for here in _present(summed, groups):
        bounded = _mean([summed[i] for i in here]) is not None
        for i in here:
            others = [summed[j] for j in here if j != i]
            if not bounded:
                advantages[i] = math.nan
            elif others:
                advantages[i] = _score(summed[i], _mean(others), Decimal(1))
    return advantages


def gdpo_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    *,
    component_weights: Sequence[float] | None = None,
    epsilon: float = 1e-6,
) -> list[float]:
    """Normalise every component in its group, add with weights, normalise over the batch."""
    columns, weights = _columns(rewards, component_weights)
    scores = [grpo_advantages(column, groups, epsilon=epsilon) for column in columns]
    total = [
        math.nan
        if all(map(math.isnan, given))
        else math.fsum(w * a for w, a in zip(weights, row, strict=True))
        for given, row in zip(zip(*columns, strict=True), zip(*scores, strict=True), strict=True)
    ]
    # The score of a group with an infinity is undefined, which differs from an absent reward.
    undefined = [any(map(math.isnan, row)) for row in zip(*scores, strict=True)]
    batch = grpo_advantages(total, [0] * len(total), epsilon=epsilon)
    return [math.nan if u else a for u, a in zip(undefined, batch, strict=True)]


def ema_grpo_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    tasks: Sequence[int] | None = None,
    moments: dict[int, tuple[Fraction, Fraction]] | None = None,
    *,
    decay: float = 0.99,
    minimum_std: float = 1e-3,
    epsilon: float = 1e-6,
    limit: float = 5.0,
    component_weights: Sequence[float] | None = None,
) -> list[float]:
    """Subtract the group's mean and divide by the running deviation of the task, clipped.

    ``moments``, the first and second moment by task, is updated in place.
    """
    summed = _one_reward(rewards, component_weights)
    tasks = tasks or [0] * len(summed)
    moments = {} if moments is None else moments
    keep = Fraction(decay)
    for here in _present(summed, tasks):
        exact = [Fraction(summed[i]) for i in here if math.isfinite(summed[i])]
        if not exact:
            continue
        new = _average(exact), _average([x * x for x in exact])
        task = tasks[here[0]]
        first, second = moments.get(task, new)
        moments[task] = (
            keep * first + (1 - keep) * new[0],
            keep * second + (1 - keep) * new[1],
        )
    centred = grpo_advantages(summed, groups, scale="none")
    advantages = [0.0] * len(summed)
    for i, deviation in enumerate(centred):
        if math.isnan(deviation):
            advantages[i] = math.nan
        elif not math.isnan(summed[i]):
            first, second = moments[tasks[i]]
            sigma = max(_root(second - first**2), Decimal(minimum_std))
            ratio = float(_divide(Fraction(deviation), sigma + Decimal(epsilon)))
            advantages[i] = min(max(ratio, -limit), limit)
    return advantages


def reinforce_plus_plus_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    *,
    group_baseline: bool = False,
    epsilon: float = 1e-6,
    component_weights: Sequence[float] | None = None,
) -> list[float]:
    """Normalise over the batch; with a baseline subtract the group's mean before."""
    summed = _one_reward(rewards, component_weights)
    batch = [0] * len(summed)
    if not group_baseline:
        return grpo_advantages(summed, batch, epsilon=epsilon)
    exact = {i: Fraction(summed[i]) for i, r in enumerate(summed) if math.isfinite(r)}
    advantages = [0.0] * len(summed)
    centred = {}
    for here in _present(summed, groups):
        mean = _mean([summed[i] for i in here])
        for i in here:
            if mean is None:
                advantages[i] = math.nan
            else:
                centred[i] = exact[i] - mean
    if centred:
        squares = sum((c**2 for c in centred.values()), Fraction())
        std = _root(squares / max(1, len(centred) - 1))
        for i, c in centred.items():
            advantages[i] = float(_divide(c, std + Decimal(epsilon))) if c else 0.0
    return advantages


def opo_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    *,
    lengths: Sequence[int],
    component_weights: Sequence[float] | None = None,
) -> list[float]:
    """Subtract the group's mean weighted by length."""
    summed = _one_reward(rewards, component_weights)
    advantages = [0.0] * len(summed)
    for here in _present(summed, groups):
        if _mean([summed[i] for i in here]) is None:
            baseline = None
        else:
            weights = [Fraction(lengths[i]) for i in here]
            weights = weights if any(weights) else [Fraction(1)] * len(here)
            total = sum((w * Fraction(summed[i]) for w, i in zip(weights, here, strict=True)))
            baseline = Fraction(total) / sum(weights)
        for i in here:
            advantages[i] = _score(summed[i], baseline, Decimal(1))
    return advantages


def pass_at_k_advantages(
    rewards: Rewards,
    groups: Sequence[int],
    *,
    k: int = 4,
    threshold: float = 0.5,
    component_weights: Sequence[float] | None = None,
) -> list[float]:
    """Standardise the rewards of all subsets; a response gets the mean over its subsets."""
    summed = _one_reward(rewards, component_weights)
    advantages = [0.0] * len(summed)
    for here in _present(summed, groups):
        size, right = len(here), [i for i in here if summed[i] > threshold]
        wrong = size - len(right)
        if size < k or not 0 < math.comb(wrong, k) < math.comb(size, k):
            continue
        mean = 1 - Fraction(math.comb(wrong, k), math.comb(size, k))
        std = _root(mean * (1 - mean))
        for i in here:
            others = Fraction(math.comb(wrong - 1, k - 1), math.comb(size - 1, k - 1))
            distance = 1 - mean - (0 if i in right else others)
            advantages[i] = float(_divide(distance, std))
    return advantages


#: The estimators of the core by their names in ``g2rpo.ESTIMATORS``, in their signature.
ORACLES: dict[str, Callable[..., list[float]]] = {
    "grpo": lambda r, g, t=None, **o: grpo_advantages(r, g, **o),
    "grpo-batch": lambda r, g, t=None, **o: grpo_advantages(r, g, scale="batch", **o),
    "dr-grpo": lambda r, g, t=None, **o: grpo_advantages(r, g, scale="none", **o),
    "rloo": lambda r, g, t=None, **o: rloo_advantages(r, g, **o),
    "gdpo": lambda r, g, t=None, **o: gdpo_advantages(r, g, **o),
    "ema-grpo": ema_grpo_advantages,
    "reinforce++": lambda r, g, t=None, **o: reinforce_plus_plus_advantages(r, g, **o),
    "reinforce++-baseline": lambda r, g, t=None, **o: reinforce_plus_plus_advantages(
        r, g, group_baseline=True, **o
    ),
    "opo": lambda r, g, t=None, **o: opo_advantages(r, g, **o),
    "pass@k": lambda r, g, t=None, **o: pass_at_k_advantages(r, g, **o),
    "gaussian": gaussian_advantages,
}


def _indices(labels: Sequence[int]) -> Iterable[list[int]]:
    """Return the indices of each label."""
    found: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        found[label].append(index)
    return found.values()


def _present(rewards: Sequence[float], labels: Sequence[int]) -> Iterable[list[int]]:
    """Return the indices of each label's present rewards."""
    present = ([i for i in each if not math.isnan(rewards[i])] for each in _indices(labels))
    return filter(None, present)


def _block_mean(first: int, stop: int, size: int, ties: str) -> float:
    """Return the score of the block of ranks first .. stop - 1 of ``size``, counted from 0."""
    if first + stop == size:  # symmetric about the middle
        return 0.0
    if ties == "midpoint":
        quantiles = [_NORMAL.inv_cdf((rank + 0.5) / size) for rank in range(first, stop)]
        return math.fsum(quantiles) / len(quantiles)
    low, high = (
        _NORMAL.pdf(_NORMAL.inv_cdf(edge / size)) if 0 < edge < size else 0.0
        for edge in (first, stop)
    )
    return (low - high) / ((stop - first) / size)


def _standardised(
    matched: Sequence[float], live: Sequence[bool], tasks: Sequence[int]
) -> list[float]:
    """Subtract each task's mean, which is 0, and divide by its standard deviation."""
    out = [0.0] * len(matched)
    for task in _indices(tasks):
        here = [i for i in task if live[i]]
        exact = [Fraction(matched[i]) for i in here]
        if any(exact):
            root = _root(_average([x * x for x in exact]))
            for i, value in zip(here, exact, strict=True):
                out[i] = float(_divide(value, root))
    return out


def _round_to(value: float, resolution: float) -> float:
    """Round to a multiple of the resolution, unless floats are sparser than that."""
    if not math.isfinite(value) or math.ulp(value) >= resolution:
        return value
    return round(value / resolution) * resolution


def _columns(
    rewards: Rewards, weights: Sequence[float] | None
) -> tuple[list[list[float]], list[float]]:
    rows: list[Any] = list(rewards)
    if rows and not isinstance(rows[0], float | int):
        columns = [list(column) for column in zip(*rows, strict=True)]
    else:
        columns = [rows]
    return columns, [1.0] * len(columns) if weights is None else list(weights)


def _one_reward(rewards: Rewards, weights: Sequence[float] | None) -> list[float]:
    """Add up components, if there are any; a NaN counts as 0 unless all are NaN."""
    columns, factors = _columns(rewards, weights)
    if len(columns) == 1 and weights is None:
        return columns[0]
    summed = []
    for row in zip(*columns, strict=True):
        counted = [w * r for w, r in zip(factors, row, strict=True) if w and not math.isnan(r)]
        summed.append(math.nan if all(map(math.isnan, row)) else sum(counted, 0.0))
    return summed


def _rankable(
    rewards: Rewards, weights: Sequence[float] | None, resolution: float | None
) -> list[Any]:
    """Return the values to rank: rewards themselves, or exact sums of components as decimals."""
    columns, factors = _columns(rewards, weights)
    if len(columns) == 1 and weights is None:
        return [_round_to(r, resolution) if resolution else r for r in columns[0]]
    sums: list[Any] = _one_reward(rewards, weights)
    for i, row in enumerate(zip(*columns, strict=True)):
        if math.isfinite(sums[i]):
            counted = [(w, r) for w, r in zip(factors, row, strict=True) if not math.isnan(r)]
            sums[i] = sum((_decimal(w) * _decimal(r) for w, r in counted if w), Fraction())
            if resolution and math.ulp(sums[i]) < resolution:
                steps = math.floor(abs(sums[i]) / _decimal(resolution) + Fraction(1, 2))
                sums[i] = math.copysign(steps, sums[i]) * _decimal(resolution)
    return sums


def _decimal(value: float) -> Fraction:
    """Return the shortest decimal that rounds to the float."""
    return Fraction(repr(float(value)))


def _unless_rounding(total: float, terms: Sequence[float]) -> float:
    """Return the sum, or 0 if it is within the rounding error of its terms."""
    return 0.0 if abs(total) < 1e-14 * math.fsum(map(abs, terms)) else total


def _mean(values: Sequence[float]) -> Fraction | None:
    """Return the exact mean; None if a value is infinite."""
    if any(map(math.isinf, values)):
        return None
    return _average([Fraction(value) for value in values])


def _average(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction()) / len(values)


def _std(values: Sequence[float]) -> Decimal | None:
    """Return the unbiased standard deviation, 0 of a single value; None if one is infinite."""
    mean = _mean(values)
    if mean is None:
        return None
    squares = sum(((Fraction(value) - mean) ** 2 for value in values), Fraction())
    return _root(squares / max(1, len(values) - 1))


def _score(value: float, mean: Fraction | None, divisor: Decimal | None) -> float:
    """Return the distance from the mean over the divisor; NaN if either is undefined."""
    if mean is None or divisor is None:
        return math.nan
    distance = Fraction(value) - mean
    return float(_divide(distance, divisor)) if distance else 0.0


def _root(square: Fraction) -> Decimal:
    with localcontext(_EXACT):
        return (Decimal(square.numerator) / Decimal(square.denominator)).sqrt()


def _divide(value: Fraction, divisor: Decimal) -> Decimal:
    with localcontext(_EXACT):
        return Decimal(value.numerator) / Decimal(value.denominator) / divisor
