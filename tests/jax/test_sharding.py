"""A batch on eight devices has the results of one, advantages to the bit."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from g2rpo_jax import gather_rollouts

from .devices import run

WORKER = Path(__file__).with_name("worker.py")


def test_gaussian_advantages_of_sharded_arrays_have_the_bits_of_whole_ones():
    run(WORKER, "advantages", "gaussian")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_estimator_of_sharded_arrays_equals_that_of_whole_ones():
    run(WORKER, "advantages")


@pytest.mark.slow
def test_losses_and_gradients_of_devices_add_up():
    run(WORKER, "losses")


@pytest.mark.slow
def test_logprobs_of_sharded_tokens_equal_those_of_whole_arrays():
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
def test_arrays_that_do_not_fit_are_refused(arrays, error, message):
    with pytest.raises(error, match=message):
        gather_rollouts(*arrays, axis_name="data")
