"""The learning rate of every step, as a function of the step alone."""

from __future__ import annotations

import torch

from g2rpo.run.schedule import learning_rate_factor, warmup_steps
from g2rpo.run.sections import Optimization

__all__ = ["learning_rate_factor", "set_learning_rate", "warmup_steps"]


def set_learning_rate(optimizer: torch.optim.Optimizer, options: Optimization, step: int) -> None:
    """Give every group of parameters the learning rate of a step, from 0."""
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * learning_rate_factor(options, step)
