"""How far advantages are from N(0, 1), without any training: rewards are drawn, not learned.

The rewards of a prompt are those of a task of the built-in run: ``MEASURED`` holds their shares.
"""

from __future__ import annotations

import numpy as np

import g2rpo
from benchmarks._report import markdown_table

from .world import Floats, Integers

SIZES = (4, 8, 16, 32)
RESPONSES = 4096  # of each task
ESTIMATORS: dict[str, tuple[str, dict[str, str | None]]] = {
    "grpo": ("grpo", {}),
    "dr-grpo": ("dr-grpo", {}),
    "ema-grpo": ("ema-grpo", {}),
    "gaussian, no stage": ("gaussian", {"task_stage": None}),
    "gaussian": ("gaussian", {}),
    "gaussian, match": ("gaussian", {"task_stage": "match"}),
    "gaussian, match-all": ("gaussian", {"task_stage": "match-all"}),
}

#: Values of accuracies and their shares, in percent, in the logged responses of one built-in run of
#: 280 steps (560 of grounding, 280 of chart and ocr, 560 of vqa).
MEASURED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "vqa": (
        (0, 1),
        (56.8, 43.2),
    ),
    "chart": (
        (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
        (42.5, 2.9, 2.5, 1.4, 4.3, 8.2, 5.0, 8.9, 9.3, 5.7, 9.3),
    ),
    "ocr": (
        (0, 0.33, 0.67, 1),
        (26.4, 36.1, 21.8, 15.7),
    ),
    "grounding": (
        (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        (16.2, 6.2, 16.6, 13.6, 12.1, 10.7, 10.7, 6.4, 4.3, 2.5, 0.5),
    ),
}


#: Names of the tables; the last is one task that has all four kinds.
KINDS = {
    "binary (vqa)": "vqa",
    "steps (chart)": "chart",
    "thirds (ocr)": "ocr",
    "dense (grounding)": "grounding",
    "mixed": "",
}
DRAWS = 10


def draw_rewards(task: str, size: int, rng: np.random.Generator) -> Floats:
    """Return rewards (RESPONSES / size, size) of prompts that differ in difficulty.

    A response's place among all depends on its prompt and on chance alike; the value at that place
    is the one of the measured shares.
    """
    values, shares = MEASURED[task]
    latent = rng.normal(size=(RESPONSES // size, 1)) + rng.normal(size=(RESPONSES // size, size))
    place = latent.reshape(-1).argsort().argsort()
    edges = np.cumsum(shares)[:-1] / np.sum(shares) * RESPONSES
    found = np.asarray(values)[np.searchsorted(edges, place, side="right")]
    if task == "grounding":  # its values are rounded above, and an overlap has no steps
        found = np.where(found > 0, found + rng.uniform(-0.05, 0.05, RESPONSES), 0.0)
    return found.reshape(-1, size)


def measure(size: int, seed: int) -> Floats:
    """Return W1 and W2 of every estimator and kind of rewards, (estimators, kinds, 2)."""
    rng = np.random.default_rng([seed, size])
    rewards = [draw_rewards(task, size, rng) for task in KINDS.values() if task]
    rewards.append(np.concatenate([each[: len(each) // len(rewards)] for each in rewards]))
    flat = np.concatenate([each.reshape(-1) for each in rewards])
    labels: Integers = np.repeat(np.arange(len(rewards)), [each.size for each in rewards])
    found = []
    for estimator, options in ESTIMATORS.values():
        advantages = g2rpo.ESTIMATORS[estimator](flat, size, labels, **options)
        distances = g2rpo.diagnostics.normality(advantages, labels).values()
        found.append([(each.w1, each.w2) for each in distances])
    return np.asarray(found)


def measure_all() -> Floats:
    """Return all distances, (DRAWS, sizes, estimators, kinds, 2)."""
    return np.asarray([[measure(size, seed) for size in SIZES] for seed in range(DRAWS)])


def section(found: Floats) -> str:
    """Return the tables of what :func:`measure_all` gave."""
    means, error = found.mean(axis=0), 1.96 * found.std(axis=0, ddof=1) / np.sqrt(DRAWS)
    parts = [
        "## Distribution",
        "How far are a task's advantages from N(0, 1)? W1 / W2 in groups of 4, 8, 16 and 32, mean "
        f"of {DRAWS} draws of {RESPONSES} responses a task, with the shares of rewards that a "
        "built-in run gave. A response's reward depends half on its prompt. Groups without "
        "signal are in. "
        f"95 % intervals are ±{error.max():.3f} or narrower.",
    ]
    for number, kind in enumerate(KINDS):
        rows = [
            [name, *("{:.2f} / {:.2f}".format(*of_size[place, number]) for of_size in means)]
            for place, name in enumerate(ESTIMATORS)
        ]
        parts.append(markdown_table([kind, *(f"n = {size}" for size in SIZES)], rows))
    return "\n\n".join(parts)
