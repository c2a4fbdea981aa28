"""Log-probabilities and entropies without logits: values, gradients, and invalid inputs."""

from __future__ import annotations

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import g2rpo_torch
from g2rpo_jax import logprobs_and_entropy

from .conftest import Inputs, exact_results, make_inputs, plain, results

# Chosen by itself, with remainders in both directions, and at the limits.
TILES = [None, (3, 5), (1, 1), (4, 37), (100, 36)]
FAST = [(None, False, None), ((3, 5), True, 3.0)]
CASES = [
    pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow])
    for case in product(TILES, (False, True), (None, 3.0))
]


slow = partial(pytest.param, marks=pytest.mark.slow)


def assert_close(got, expected, *, atol, rtol=0.0):
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=rtol)


@pytest.mark.parametrize(("tile", "bias", "softcap"), CASES)
def test_values_and_gradients_are_those_of_full_logits(tile, bias, softcap):
    inputs = make_inputs()
    inputs.bias[[3, 20, 36]] = -np.inf
    options = {"bias": bias, "temperature": 0.7, "softcap": softcap}
    expected = exact_results(inputs, **options)
    got = results(inputs, "float32", logprobs_and_entropy, tile=tile, **options)
    assert_close(got, expected, atol=1e-5, rtol=1e-5)
    with jax.enable_x64(True):
        got = results(inputs, "float64", logprobs_and_entropy, tile=tile, **options)
    assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_bf16_inputs_lose_nothing_but_their_own_rounding():
    """A model's sizes: logits of several nats, sums over many tokens and entries."""
    inputs = make_inputs(tokens=(300,), width=64, entries=5000, scale=0.5)
    rounded = [np.asarray(x).astype(np.float64) for x in inputs.leaves("bfloat16")]
    inputs = Inputs(rounded[0], rounded[1], inputs.labels, rounded[2], inputs.grads)
    expected = exact_results(inputs, bias=True)
    got = results(inputs, "bfloat16", logprobs_and_entropy, bias=True)
    assert_close(got[:2], expected[:2], atol=2e-3)
    # The gradient by the logits is rounded to bf16, and the results again: 8 bits each.
    for ours, theirs in zip(got[2:], expected[2:], strict=True):
        assert_close([ours], [theirs], atol=2e-3 * np.abs(theirs).max(), rtol=2**-7)


@pytest.mark.slow
def test_float32_at_a_model_s_size():
    inputs = make_inputs(tokens=(200,), width=96, entries=8000, scale=0.3)
    got = results(inputs, "float32", logprobs_and_entropy)
    assert_close(got, exact_results(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("options", [{}, slow({"temperature": 0.7, "softcap": 3.0, "bias": True})])
def test_the_same_numbers_as_on_pytorch(options, dtype, tolerance):
    inputs = make_inputs(tokens=(40,), width=16, entries=300, scale=0.5)
    with jax.enable_x64(dtype == "float64"):
        got = results(inputs, dtype, logprobs_and_entropy, tile=(16, 64), **options)
        leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in inputs.leaves(dtype)]
    given = options | ({"bias": leaves[2]} if options else {})
    leaves = leaves if options else leaves[:2]
    values = g2rpo_torch.logprobs_and_entropy(
        *leaves[:2], torch.tensor(inputs.labels), tile=(16, 64), **given
    )
    loss = sum(
        (v * torch.tensor(p).to(v.dtype)).sum() for v, p in zip(values, inputs.grads, strict=True)
    )
    assert {str(v.dtype) for v in values} == {f"torch.{dtype}"}
    theirs = [x.detach().numpy() for x in (*values, *torch.autograd.grad(loss, leaves))]
    for a, b in zip(got, theirs, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.slow
def test_huge_logits_stay_finite():
    inputs = make_inputs()
    inputs.hidden[:] *= 3000
    expected = exact_results(inputs, bias=True)
    got = results(inputs, "float32", logprobs_and_entropy, bias=True, tile=(2, 7))
    assert all(np.isfinite(x).all() for x in got)
    assert_close(got[:1], expected[:1], rtol=1e-5, atol=1e-2)
    assert_close(got[1:2], expected[1:2], atol=1e-5)


def test_a_token_without_any_entry_has_no_entropy():
    bias = jnp.full(5, -jnp.inf)
    logprobs, entropy = logprobs_and_entropy(
        jnp.ones((2, 3)), jnp.ones((5, 3)), jnp.asarray([1, 2]), bias=bias
    )
    assert logprobs.tolist() == [-np.inf] * 2
    assert entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ignore_index", "label_dtype"), [(-100, "int32"), slow(7, "int8"), slow(255, "uint8")]
)
def test_ignored_tokens_have_0_for_any_hidden_states(ignore_index, label_dtype):
    inputs = make_inputs(tokens=(6,))
    kept = np.asarray([True, False, True, True, False, True])
    inputs.labels[inputs.labels == 7] = 8
    labels = np.where(kept, inputs.labels, ignore_index).astype(label_dtype)
    hidden = np.where(kept[:, None], inputs.hidden, np.nan)
    few = Inputs(
        hidden[kept], inputs.weight, inputs.labels[kept], inputs.bias, inputs.grads[:, kept]
    )
    # Gradients by the outputs of ignored tokens do not count either.
    grads = np.where(kept, inputs.grads, np.nan)
    got = results(
        inputs._replace(hidden=hidden, labels=labels, grads=grads),
        "float32",
        partial(logprobs_and_entropy, ignore_index=ignore_index, tile=(2, 10)),
    )
    expected = exact_results(few)
    for i in range(3):
        assert not got[i][~kept].any()
        np.testing.assert_allclose(got[i][kept], expected[i], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(got[3], expected[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [-1, slow(37), slow(2**31 - 1)])
def test_an_invalid_label_under_jit_makes_its_own_logprob_nan_only(wrong):
    """Under jit it cannot raise: its log-probability is NaN, and other results are unaffected."""
    inputs = make_inputs(tokens=(6,))
    labels = np.where(np.arange(6) == 2, wrong, inputs.labels)
    others = np.arange(6) != 2

    def loss(hidden, weight, labels):
        logprobs, entropy = logprobs_and_entropy(hidden, weight, labels, tile=(2, 8))
        kept = jnp.where(labels == wrong, 0.0, logprobs)
        return jnp.sum(kept) + 0.3 * jnp.sum(entropy), (logprobs, entropy)

    def careless(hidden, weight, labels):
        return jnp.sum(logprobs_and_entropy(hidden, weight, labels, tile=(2, 8))[0])

    hidden, weight, _ = inputs.leaves("float32")
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    got, (logprobs, entropy) = gradient(hidden, weight, jnp.asarray(labels))
    assert np.isnan(logprobs[2])
    expected, entropies = plain(hidden, weight, jnp.asarray(inputs.labels))
    np.testing.assert_allclose(logprobs[others], expected[others], rtol=1e-5)
    np.testing.assert_allclose(entropy, entropies, rtol=1e-5)

    def without(hidden, weight):
        logprobs, entropy = plain(hidden, weight, jnp.asarray(inputs.labels))
        return jnp.sum(jnp.where(others, logprobs, 0.0)) + 0.3 * jnp.sum(entropy)

    assert_close(got, jax.grad(without, argnums=(0, 1))(hidden, weight), atol=1e-5, rtol=1e-5)
    # A loss that does not leave it out is NaN, and can be seen to be; gradients are not.
    value, got = jax.jit(jax.value_and_grad(careless))(hidden, weight, jnp.asarray(labels))
    assert np.isnan(value)
    assert np.isfinite(got).all()
    assert not got[2].any()


def test_tokens_without_a_gradient_may_have_any_hidden_states():
    inputs = make_inputs(tokens=(6,))
    hidden = jnp.asarray(inputs.hidden, "float32").at[1].set(jnp.nan)
    weight = jnp.asarray(inputs.weight, "float32")

    def loss(hidden, weight):
        logprobs, entropy = logprobs_and_entropy(hidden, weight, jnp.asarray(inputs.labels))
        return jnp.sum(jnp.where(jnp.arange(6) == 1, 0.0, logprobs + entropy))

    by_hidden, by_weight = jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, weight)
    assert np.isfinite(by_weight).all()
    assert not by_hidden[1].any()
    assert by_hidden[0].any()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_an_empty_batch_gives_empty_results(shape):
    def total(hidden, weight):
        values = logprobs_and_entropy(hidden, weight, jnp.zeros(shape, dtype=jnp.int32))
        assert values[0].shape == values[1].shape == shape
        return jnp.sum(values[0]) + jnp.sum(values[1])

    gradients = jax.grad(total, argnums=(0, 1))(jnp.zeros((*shape, 4)), jnp.ones((9, 4)))
    assert gradients[0].shape == (*shape, 4)
    assert not gradients[1].any()


@pytest.mark.slow
def test_low_rank_weights_add_to_a_frozen_one():
    inputs = make_inputs()
    generator = np.random.default_rng(3)
    down, up = (jnp.asarray(generator.standard_normal(s), "float32") for s in ((2, 6), (37, 2)))
    hidden, weight, _ = inputs.leaves("float32")
    labels = jnp.asarray(inputs.labels)

    def ours(hidden, down, up):
        low_rank = (jnp.einsum("...h,rh->...r", hidden, down), up)
        return sum(
            x.sum()
            for x in logprobs_and_entropy(hidden, weight, labels, low_rank=low_rank, tile=(4, 10))
        )

    def theirs(hidden, down, up):
        return sum(x.sum() for x in plain(hidden, weight + up @ down, labels))

    got = jax.value_and_grad(ours, argnums=(0, 1, 2))(hidden, down, up)
    expected = jax.value_and_grad(theirs, argnums=(0, 1, 2))(hidden, down, up)
    assert_close(jax.tree.leaves(got), jax.tree.leaves(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_arrays_of_different_dtypes_are_promoted():
    inputs = make_inputs()
    hidden, weight, bias = inputs.leaves("float32")
    got = logprobs_and_entropy(
        hidden.astype("bfloat16"), weight, jnp.asarray(inputs.labels), bias=bias.astype("float16")
    )
    expected = plain(
        hidden.astype("bfloat16").astype("float32"),
        weight,
        jnp.asarray(inputs.labels),
        bias.astype("float16").astype("float32"),
    )
    assert got[0].dtype == got[1].dtype == jnp.float32
    assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": jnp.asarray([1, 37])}, ValueError, r"labels must be in 0 .. 36 .*got 37"),
        ({"labels": jnp.asarray([-1, 3])}, ValueError, "got -1"),
        ({"labels": jnp.asarray([1, 2, 3])}, ValueError, r"labels must have shape \(2,\), got"),
        ({"labels": jnp.asarray([1.0, 2.0])}, TypeError, "labels must be integers, got float32"),
        ({"labels": np.asarray([1, 2])}, TypeError, "labels must be a jax.Array, got ndarray"),
        ({"hidden": jnp.zeros((2, 6), dtype=int)}, TypeError, "hidden must be floating point"),
        ({"hidden": jnp.asarray(0.0)}, ValueError, r"hidden must have shape \(..., H\)"),
        ({"weight": jnp.zeros((37, 5))}, ValueError, r"weight must have shape \(V, 6\)"),
        ({"bias": jnp.zeros(36)}, ValueError, r"bias must have shape \(37,\), got \(36,\)"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": jnp.ones(())}, TypeError, "temperature must be a Python number, got"),
        ({"softcap": -1.0}, ValueError, "softcap must be positive and finite, got -1.0"),
        ({"tile": (0, 4)}, ValueError, "tile must be two positive sizes"),
        ({"low_rank": (jnp.zeros((2, 3)),)}, ValueError, "low_rank must be two arrays, got 1"),
        (
            {"low_rank": (jnp.zeros((2, 3)), jnp.zeros((37, 2)))},
            ValueError,
            r"low_rank\[1\] must have shape \(37, R\), got \(37, 2\)",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, error, message):
    given = {
        "hidden": jnp.zeros((2, 6)),
        "weight": jnp.zeros((37, 6)),
        "labels": jnp.asarray([1, 2]),
    } | change
    arrays = [given.pop(name) for name in ("hidden", "weight", "labels")]
    with pytest.raises(error, match=message):
        logprobs_and_entropy(*arrays, **given)
