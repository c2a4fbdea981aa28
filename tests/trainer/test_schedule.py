"""The learning rate of every step against its closed form."""

import math

import pytest

from g2rpo_trainer.config import Optimization
from g2rpo_trainer.optimizer import learning_rate_factor, warmup_steps

STEPS, WARMUP = 50, 8


def closed_form(schedule, step, lowest):
    if step < WARMUP:
        return (step + 1) / (WARMUP + 1)
    done = (step - WARMUP) / (STEPS - WARMUP)
    falling = {
        "constant": 1,
        "linear": 1 - done,
        "cosine": math.cos(math.pi * done / 2) ** 2,
    }[schedule]
    return lowest + (1 - lowest) * falling


@pytest.mark.parametrize("lowest", [0.0, 0.1])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_factor_is_that_of_the_closed_form(schedule, lowest):
    options = Optimization(
        schedule=schedule, steps=STEPS, warmup_steps=WARMUP, min_learning_rate_ratio=lowest
    )
    found = [learning_rate_factor(options, step) for step in range(STEPS)]
    expected = [closed_form(schedule, step, lowest) for step in range(STEPS)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[WARMUP] == max(found) == 1
    assert min(found) > 0
    # The end of the run is where a further step would be.
    assert learning_rate_factor(options, STEPS) == (1 if schedule == "constant" else lowest)


@pytest.mark.parametrize(
    ("given", "steps"), [(0, 0), (0.04, 2), (0.05, 3), (1, 1), (12, 12), (60, 60)]
)
def test_warm_up_is_steps_or_a_share(given, steps):
    options = Optimization(steps=STEPS, warmup_steps=given)
    assert warmup_steps(options) == steps
    factors = [learning_rate_factor(options, step) for step in range(STEPS)]
    assert all(0 < factor <= 1 for factor in factors)
