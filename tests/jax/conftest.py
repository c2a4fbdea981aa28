"""Inputs of a head, and the plain computation by full logits for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from g2rpo import entropy_from_logits


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Implicit promotion of dtypes or ranks raises, and float32 products are float32.

    On GPUs and TPUs they are of less precision by default, and no parity to 1e-5 holds.
    """
    promotion = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with promotion[0], promotion[1], jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260408)


class Inputs(NamedTuple):
    """Inputs of a head and gradients by its outputs: NumPy, float64."""

    hidden: np.ndarray
    weight: np.ndarray
    labels: np.ndarray
    bias: np.ndarray
    grads: np.ndarray

    def leaves(self, dtype: str) -> tuple[Array, Array, Array]:
        """Return hidden, weight and bias."""
        return tuple(jnp.asarray(x, dtype) for x in (self.hidden, self.weight, self.bias))


def make_inputs(
    *, tokens: tuple[int, ...] = (3, 5), width: int = 6, entries: int = 37, scale: float = 2.0
) -> Inputs:
    rng = np.random.default_rng(20260408)
    return Inputs(
        rng.standard_normal((*tokens, width)),
        scale * rng.standard_normal((entries, width)),
        rng.integers(4, min(20, entries), tokens).astype(np.int32),
        rng.standard_normal(entries),
        rng.standard_normal((2, *tokens)),
    )


def plain(hidden, weight, labels, bias=None, temperature=1.0, softcap=None):
    """Return log-probabilities and entropies from full logits."""
    logits = jnp.einsum("...h,vh->...v", hidden, weight)
    along = (1,) * (logits.ndim - 1) + (-1,)
    if bias is not None:
        logits = logits + bias.reshape(along)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits = jnp.where((bias == -jnp.inf).reshape(along), -jnp.inf, logits)
    logits = logits / temperature
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return chosen, entropy_from_logits(logits)


def results(inputs: Inputs, dtype: str, function, *, bias: bool = False, **options):
    """Return values and gradients of a function under jit, in float64."""

    def weighted_sum(leaves):
        given = options | ({"bias": leaves[2]} if bias else {})
        values = function(leaves[0], leaves[1], jnp.asarray(inputs.labels), **given)
        grads = jnp.asarray(inputs.grads, values[0].dtype)
        return sum(jnp.sum(v * p) for v, p in zip(values, grads, strict=True)), values

    leaves = inputs.leaves(dtype)[: 2 + bias]
    (_, values), gradients = jax.jit(jax.value_and_grad(weighted_sum, has_aux=True))(leaves)
    assert [g.dtype for g in gradients] == [x.dtype for x in leaves]
    return [np.asarray(x).astype(np.float64) for x in (*values, *gradients)]


def exact_results(inputs: Inputs, *, bias: bool = False, **options):
    """Return the expected :func:`results`, computed in float64 from full logits."""
    with jax.enable_x64(True):
        return results(inputs, "float64", plain, bias=bias, **options)
