"""The learning rate of every step, as a function of the step alone."""

import math

from g2rpo_trainer.config import Optimization

__all__ = ["learning_rate_factor", "warmup_steps"]


def learning_rate_factor(options: Optimization, step: int) -> float:
    """Return the factor of the learning rate.

    Parameters
    ----------
    options : Optimization
        With ``schedule``, ``steps``, ``warmup_steps`` and ``min_learning_rate_ratio``.
    step : int
        From 0.

    Returns
    -------
    float
        Rising in equal parts to 1 at the first step after the warm-up of w steps, (step + 1) /
        (w + 1); then with p from 0 there to 1 at ``steps``, at the end of the run, and m the
        ratio: 1, m + (1 - m)(1 - p), or m + (1 - m)(1 + cos πp) / 2.

    Examples
    --------
    >>> options = Optimization(schedule="cosine", steps=8, warmup_steps=2)
    >>> [round(learning_rate_factor(options, step), 2) for step in range(8)]
    [0.33, 0.67, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    warmup = warmup_steps(options)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(options.steps - warmup, 1)
    falling = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }[options.schedule]
    lowest = options.min_learning_rate_ratio
    return lowest + (1 - lowest) * falling


def warmup_steps(options: Optimization) -> int:
    """Return the length of the warm-up in steps; below 1 the option is a share of the run.

    Examples
    --------
    >>> warmup_steps(Optimization(steps=200, warmup_steps=0.03))
    6
    """
    given = options.warmup_steps
    return math.ceil(given * options.steps) if given < 1 else int(given)
