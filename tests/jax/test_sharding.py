"""A batch on eight devices gives what it gives on one: advantages bit by bit."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from g2rpo_jax import gather_rollouts

from .devices import run

WORKER = Path(__file__).with_name("worker.py")


def test_gaussian_advantages():
    run(WORKER, "advantages", "gaussian")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_estimator():
    run(WORKER, "advantages")


@pytest.mark.slow
def test_losses_and_their_gradients_add_up():
    run(WORKER, "losses")


@pytest.mark.slow
def test_logprobs_of_sharded_tokens():
    run(WORKER, "logprobs")


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((), TypeError, "needs at least one array"),
        ((np.ones(2),), TypeError, r"arrays\[0\] must be a jax.Array, got ndarray"),
        ((jnp.ones(()),), ValueError, r"arrays\[0\] must have shape \(N, ...\), got \(\)"),
        (
            (jnp.ones(2), jnp.ones(3)),
            ValueError,
            r"arrays\[1\] must have as many rows as arrays\[0\], 2, got shape \(3,\)",
        ),
    ],
)
def test_bad_input(arrays, error, message):
    with pytest.raises(error, match=message):
        gather_rollouts(*arrays, axis_name="data")
