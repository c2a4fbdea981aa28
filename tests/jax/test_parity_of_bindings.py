"""Functions of the bindings on JAX and PyTorch: equal results for the same batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import g2rpo
import g2rpo_jax
import g2rpo_torch

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
TASKS, ENTRIES, WIDTH = 3, 40, 8


def on_one_device(function, *arrays):
    """Call a function inside of a mapped axis of one device, as PyTorch runs without processes."""
    mapped = jax.vmap(function, axis_name="data")(*(jnp.asarray(x)[None] for x in arrays))
    return jax.tree.map(lambda x: np.asarray(x[0]), mapped)


def on_two_devices(function, *arrays):
    """Call a function inside of a mapped axis of two devices, which have half of the rows each."""
    halves = (jnp.asarray(x).reshape(2, -1, *x.shape[1:]) for x in arrays)
    return jax.jit(jax.vmap(function, axis_name="data"))(*halves)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gathered_rollouts_agree_with_one_device(dtype, rng):
    rewards, groups = rng.standard_normal((6, 2)).astype(dtype), np.arange(6) // 2

    def gather(*arrays):
        return g2rpo_jax.gather_rollouts(*arrays, axis_name="data")

    with jax.enable_x64(dtype == "float64"):
        ours, local = on_one_device(gather, rewards, groups)
        (whole, _), rows = on_two_devices(gather, rewards, groups)
    tensors = torch.tensor(rewards, requires_grad=True), torch.tensor(groups)
    theirs, own = g2rpo_torch.gather_rollouts(*tensors)
    assert local.tolist() == list(range(6))[own]
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5]]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert str(ours[0].dtype) == dtype
    np.testing.assert_array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[0], rewards)


def test_gathered_arrays_have_no_gradient(rng):
    rewards = rng.standard_normal(6).astype(np.float32)

    def total(rewards):
        (whole,), _ = g2rpo_jax.gather_rollouts(rewards, axis_name="data")
        return jnp.sum(whole * whole)

    assert not np.asarray(on_two_devices(jax.grad(total), rewards)).any()
    (whole,), _ = g2rpo_torch.gather_rollouts(torch.tensor(rewards, requires_grad=True))
    assert not whole.requires_grad


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("counted", ["tokens", "tokens of tasks", "entropies of tasks"])
def test_totals_of_halves_are_those_of_the_whole(counted, dtype, rng):
    mask, tasks = rng.random((8, 5)) < 0.7, np.arange(8) % 2
    entropies = np.abs(rng.standard_normal((8, 5))).astype(dtype)

    def totals(mask, tasks, entropies):
        options = {}
        if counted != "tokens":
            options = {"tasks": tasks, "num_tasks": TASKS}
        if counted == "entropies of tasks":
            options["entropies"] = entropies
        return g2rpo.batch_totals(mask, **options)

    def reduced(*arrays):
        return g2rpo_jax.reduce_totals(totals(*arrays), axis_name="data")

    with jax.enable_x64(dtype == "float64"):
        found = on_two_devices(reduced, mask, tasks, entropies)
    tensors = (torch.tensor(x) for x in (mask, tasks, entropies))
    expected = g2rpo_torch.reduce_totals(totals(*tensors))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        for half in () if ours is None else ours:
            np.testing.assert_allclose(half, theirs, rtol=TOLERANCE[dtype])
    assert (found.task_tokens is None) == (counted == "tokens")


def objective(module, hidden, weight, labels, old, advantages, mask, tasks, bounds):
    """Return the loss from separate functions on JAX, from the fused one on PyTorch."""
    given = {"entropy_low": bounds[0], "entropy_high": bounds[1], "ref_logprobs": old, "beta": 0.1}
    if module is g2rpo_torch:
        given |= {"backend": "portable"}
        return module.fused_g2rpo_loss(
            hidden, weight, labels, old, advantages, mask, tasks, **given
        )
    logprobs, entropies = module.logprobs_and_entropy(hidden, weight, labels)
    return g2rpo.g2rpo_loss(
        logprobs, old, advantages, mask, entropies=entropies, tasks=tasks, **given
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_fused_loss_of_pytorch_is_the_composition_on_jax(dtype, rng):
    shape = (6, 5)
    arrays = [
        rng.standard_normal((*shape, WIDTH)).astype(dtype),
        rng.standard_normal((ENTRIES, WIDTH)).astype(dtype) / 3,
        rng.integers(0, ENTRIES, shape),
        (rng.standard_normal(shape) / 5 - np.log(ENTRIES)).astype(dtype),
        rng.standard_normal(6).astype(dtype),
        rng.random(shape) < 0.7,
        np.arange(6) % TASKS,
        np.asarray([[0.1, 3.5, 0.2], [0.4, np.inf, 9.0]], dtype),
    ]
    tensors = [torch.tensor(x) for x in arrays]
    leaves = [x.requires_grad_() for x in tensors[:2]]
    theirs, metrics = objective(g2rpo_torch, *tensors)
    expected = [*theirs, *torch.autograd.grad(theirs.total, leaves)]

    def loss(hidden, weight, *rest):
        terms, metrics = objective(g2rpo_jax, hidden, weight, *rest)
        return terms.total, (terms, metrics)

    with jax.enable_x64(dtype == "float64"):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        gradients, (terms, ours) = gradient(*(jnp.asarray(x) for x in arrays))
    assert theirs.entropy > 0
    for mine, other in zip([*terms, *gradients], expected, strict=True):
        other = other.detach().numpy()
        atol = TOLERANCE[dtype] * max(1.0, np.abs(other).max())
        np.testing.assert_allclose(mine, other, rtol=0, atol=atol)
    for name, value in metrics.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-7)
