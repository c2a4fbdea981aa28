"""The operator under JAX's transformations and compilation, and its planned memory."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g2rpo_jax import logprobs_and_entropy

from .conftest import make_inputs, plain

TILE = (2, 16)


def loss_of(function, labels, **options):
    def loss(hidden, weight):
        logprobs, entropy = function(hidden, weight, labels, **options)
        return jnp.sum(logprobs + 0.3 * entropy)

    return loss


def setup():
    inputs = make_inputs()
    hidden, weight, _ = inputs.leaves("float32")
    labels = jnp.asarray(inputs.labels)
    ours = loss_of(logprobs_and_entropy, labels, tile=TILE)
    expected = jax.value_and_grad(loss_of(plain, labels), argnums=(0, 1))(hidden, weight)
    return hidden, weight, labels, ours, expected


def assert_close(got, expected):
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_grad_without_jit_is_exact():
    hidden, weight, _, ours, expected = setup()
    assert_close(jax.value_and_grad(ours, argnums=(0, 1))(hidden, weight), expected)


def test_grad_under_checkpoint_is_exact():
    hidden, weight, _, ours, expected = setup()
    compiled = jax.jit(jax.value_and_grad(jax.checkpoint(ours), argnums=(0, 1)))
    assert_close(compiled(hidden, weight), expected)


def one_response(hidden, weight, labels):
    return loss_of(logprobs_and_entropy, labels, tile=TILE)(hidden, weight)


def test_the_gradient_of_a_vmap_is_exact():
    hidden, weight, labels, _, expected = setup()

    def total(hidden, weight):
        return jnp.sum(jax.vmap(one_response, in_axes=(0, None, 0))(hidden, weight, labels))

    got = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(hidden, weight)
    assert_close(got, expected)


@pytest.mark.slow
def test_the_vmap_of_a_gradient_is_exact():
    hidden, weight, labels, _, expected = setup()
    each = jax.vmap(jax.value_and_grad(one_response, argnums=(0, 1)), in_axes=(0, None, 0))
    values, (by_hidden, by_weight) = jax.jit(each)(hidden, weight, labels)
    assert_close((values.sum(), (by_hidden, by_weight.sum(0))), expected)


@pytest.mark.slow
def test_gradients_inside_a_scan_are_exact():
    hidden, weight, labels, _, expected = setup()

    def total(hidden, weight):
        def add(carry, row):
            return carry + loss_of(logprobs_and_entropy, row[1], tile=TILE)(row[0], weight), None

        return jax.lax.scan(add, jnp.zeros(()), (hidden, labels))[0]

    assert_close(jax.value_and_grad(total, argnums=(0, 1))(hidden, weight), expected)


def test_a_shape_is_compiled_once():
    hidden, weight, labels, _, _ = setup()
    traces = []

    @jax.jit
    def values(hidden, weight, labels):
        traces.append(labels.shape)
        return logprobs_and_entropy(hidden, weight, labels)

    for shift in range(3):
        values(hidden + shift, weight, labels + shift)
    values(hidden[1:], weight, labels[1:])
    assert traces == [(3, 5), (2, 5)]


@pytest.mark.slow
def test_a_second_derivative_is_right_and_forward_mode_raises():
    hidden, weight, labels, ours, _ = setup()
    direction = jnp.cos(jnp.arange(hidden.size, dtype=jnp.float32)).reshape(hidden.shape)

    def curvature(loss):
        return jax.grad(lambda h: jnp.sum(jax.grad(loss)(h, weight) * direction))(hidden)

    assert_close(curvature(ours), curvature(loss_of(plain, labels)))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda h: ours(h, weight), (hidden,), (direction,))


def equations(jaxpr):
    """Yield all equations of a program, those of its loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def largest(function, *shapes) -> int:
    """Return the size of the largest array that a program computes."""
    program = jax.make_jaxpr(function)(*shapes).jaxpr
    return max(
        math.prod(variable.aval.shape)
        for equation in equations(program)
        for variable in equation.outvars
    )


TOKENS, WIDTH, ENTRIES = 600, 8, 4000


def shapes(tokens=TOKENS, entries=ENTRIES):
    return (
        jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((entries, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )


def gradient(function=logprobs_and_entropy, argnums=(0, 1), **options):
    def loss(hidden, weight, labels):
        logprobs, entropy = function(hidden, weight, labels, **options)
        return jnp.sum(logprobs) + 0.3 * jnp.sum(entropy)

    return jax.value_and_grad(loss, argnums=argnums)


def test_no_array_of_all_logits_is_ever_computed():
    for tile in ((64, 256), (128, 512)):
        assert largest(gradient(tile=tile), *shapes()) <= max(
            math.prod(tile), WIDTH * ENTRIES, WIDTH * 640
        )
    assert largest(gradient(plain), *shapes()) == TOKENS * ENTRIES  # the check can fail


def planned(function, **sizes) -> int:
    """Return the temporary memory of the compiled program, in bytes."""
    return jax.jit(function).lower(*shapes(**sizes)).compile().memory_analysis().temp_size_in_bytes


def test_planned_memory_grows_with_the_tile_and_not_with_the_logits():
    small, large = (planned(gradient(tile=tile)) for tile in ((60, 500), (300, 2000)))
    assert small < 6 * 4 * 60 * 500 + 4 * WIDTH * (2 * TOKENS + 3 * ENTRIES)
    assert 300 * 2000 * 4 < large < 6 * 4 * 300 * 2000
    # Twice the tokens and twice the vocabulary: four times the logits.
    doubled = planned(gradient(tile=(60, 500)), tokens=2 * TOKENS, entries=2 * ENTRIES)
    assert doubled < 2.2 * small
    assert planned(gradient(plain)) >= TOKENS * ENTRIES * 4  # the check can fail


def products(function) -> int:
    program = jax.make_jaxpr(function)(*shapes()).jaxpr
    return sum(equation.primitive.name == "dot_general" for equation in equations(program))


def test_gradients_that_are_not_required_are_not_computed():
    assert products(gradient()) == 4
    assert products(gradient(argnums=0)) == 3
    assert products(gradient(argnums=1)) == 3
    compiled = jax.jit(gradient(argnums=0))
    assert products(compiled) == 3


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_products_have_the_precision_that_is_asked_for(precision):
    """The comparisons of these tests ask for the highest."""
    arrays = jnp.ones((3, 4)), jnp.ones((5, 4)), jnp.zeros(3, int)

    def total(hidden, weight, labels):
        return sum(map(jnp.sum, logprobs_and_entropy(hidden, weight, labels)))

    with jax.default_matmul_precision(precision):
        text = str(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*arrays))
    products = text.count("dot_general[")
    assert products >= 3
    assert text.count("precision=(Precision.HIGHEST") == (products if precision == "highest" else 0)


def test_the_tests_ask_for_the_highest_precision():
    assert jax.config.jax_default_matmul_precision == "highest"
