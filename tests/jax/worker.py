"""The checks of test_sharding.py, in a separate process with eight devices on the CPU.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python worker.py advantages|losses|logprobs
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import g2rpo
from g2rpo_jax import gather_rollouts, logprobs_and_entropy, reduce_totals

ROWS = PartitionSpec("data")
ALL = PartitionSpec()
TASKS = 3


def mesh_of(shape: tuple[int, ...] = (8,), names: tuple[str, ...] = ("data",)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))


def same_bits(ours: Array, theirs: Array) -> None:
    assert ours.dtype == theirs.dtype
    a, b = np.asarray(ours), np.asarray(theirs)
    assert a.tobytes() == b.tobytes(), np.abs(a - b).max()


def rollouts(size: int = 320) -> list[Array]:
    """Return rewards, groups and tasks; groups and tasks are spread over all devices."""
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 40, size)
    tasks = groups % TASKS
    rewards = np.exp(rng.standard_normal(size))
    rewards = np.where(tasks == 0, (rewards > 1).astype(float), rewards)
    rewards[7], rewards[11] = np.nan, np.inf
    return [
        jnp.asarray(x, dtype) for x, dtype in ((rewards, jnp.float32), (groups, int), (tasks, int))
    ]


def padded(arrays: list[Array], size: int) -> list[Array]:
    """Pad with rollouts of absent reward, in groups and tasks of the others."""
    rows = size - len(arrays[0])
    fills = (jnp.nan, arrays[1][0], arrays[2][0])
    return [
        jnp.concatenate([x, jnp.full((rows, *x.shape[1:]), fill, x.dtype)])
        for x, fill in zip(arrays, fills, strict=True)
    ]


def with_state(rewards: Array, groups: Array, tasks: Array) -> Array:
    """Return EMA-GRPO's advantages with the state of a previous batch."""
    _, state = g2rpo.ema_grpo_advantages(
        rewards * 2.0, groups, tasks, g2rpo.EMAState.start(TASKS, rewards)
    )
    return g2rpo.ema_grpo_advantages(rewards, groups, tasks, state)[0]


def variants() -> dict[str, tuple[Callable[..., Array], list[Array]]]:
    """Return every estimator and its inputs, those with components and a state too."""
    dense = rollouts()
    rng = np.random.default_rng(5)
    second = jnp.asarray(rng.standard_normal(len(dense[0])), jnp.float32)
    components = [jnp.stack([dense[0], second], axis=1), *dense[1:]]
    found = {name: (each, dense) for name, each in g2rpo.ESTIMATORS.items()}
    gaussian = g2rpo.gaussian_advantages
    return found | {
        "gaussian-decoupled": (
            partial(gaussian, decoupled=True, component_weights=[0.7, 0.3]),
            components,
        ),
        "gaussian-match": (partial(gaussian, task_stage="match"), dense),
        "gaussian-barycentre": (partial(gaussian, ties="barycentre"), dense),
        "gdpo-components": (lambda r, g, _: g2rpo.gdpo_advantages(r, g), components),
        "ema-grpo-state": (with_state, dense),
    }


def check_advantages(*names: str) -> None:
    """Compare one device with shard_map over one axis and two, and with global arrays.

    Without names, all estimators; what does not depend on the estimator is checked then, too.
    """
    arrays = rollouts()
    found = variants()
    for name in names or tuple(found):
        estimator, arrays = found[name]
        expected = jax.jit(estimator)(*arrays)
        assert expected.any()
        for axes in (("data", "model"), "data") if not names else ("data",):
            mesh = mesh_of() if axes == "data" else mesh_of((4, 2), axes)
            rows = PartitionSpec(axes)

            def local(*arrays, axes=axes, estimator=estimator):
                gathered, own = gather_rollouts(*arrays, axis_name=axes)
                return estimator(*gathered)[own]

            sharded = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows)
            placed = [jax.device_put(x, NamedSharding(mesh, rows)) for x in arrays]
            ours = jax.jit(sharded)(*placed)
            assert len(ours.sharding.device_set) == 8
            same_bits(ours, expected)
        # Under jit arrays are global: nothing is to be done, and nothing changes.
        same_bits(jax.jit(estimator)(*placed), expected)
        check_uneven(estimator, arrays)
    if names:
        return
    arrays = rollouts()
    check_explicit_axes(arrays)
    (whole,), own = jax.vmap(lambda x: gather_rollouts(x, axis_name="data"), axis_name="data")(
        jnp.asarray([[True, False], [True, True]])
    )
    assert whole.tolist() == [[True, False, True, True]] * 2
    assert own.tolist() == [[0, 1], [2, 3]]


def check_uneven(estimator: Callable[..., Array], arrays: list[Array]) -> None:
    """Shard a batch that is not divisible by eight, with padding."""
    few = [x[:317] for x in arrays]
    expected = jax.jit(estimator)(*few)
    filled = padded(few, 328)

    def local(*arrays):
        gathered, own = gather_rollouts(*arrays, axis_name="data")
        return estimator(*gathered)[own]

    sharded = jax.shard_map(local, mesh=mesh_of(), in_specs=(ROWS,) * 3, out_specs=ROWS)
    placed = [jax.device_put(x, NamedSharding(mesh_of(), ROWS)) for x in filled]
    for ours in (jax.jit(sharded)(*placed), jax.jit(estimator)(*placed)):
        same_bits(ours[:317], expected)
        assert not ours[317:].any()


def check_explicit_axes(arrays: list[Array]) -> None:
    """Over axes of explicit type JAX refuses to sort, until the vectors are everywhere."""
    expected = jax.jit(g2rpo.gaussian_advantages)(*arrays)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        placed = [jax.device_put(x, ROWS) for x in arrays]
        refusal = ""
        try:
            jax.jit(g2rpo.gaussian_advantages)(*placed)
        except Exception as error:
            refusal = str(error)
        assert "must be unsharded" in refusal
        same_bits(
            jax.jit(lambda *x: g2rpo.gaussian_advantages(*jax.sharding.reshard(x, ALL)))(*placed),
            expected,
        )


def check_losses() -> None:
    """Add up the losses and gradients of eight devices."""
    rng = np.random.default_rng(4)
    shape = (48, 9)
    normal = lambda *size: jnp.asarray(rng.standard_normal(size), jnp.float32)  # noqa: E731
    policy, old = normal(9), -jnp.abs(normal(*shape))
    mask = jnp.asarray(rng.random(shape) < 0.6)
    arrays = (old, normal(48), mask, jnp.abs(normal(*shape)), jnp.asarray(rng.integers(0, 3, 48)))

    def loss(policy, old, advantages, mask, entropies, tasks, axis_name=None):
        entropies = entropies * jnp.exp(policy[None, :])
        totals = g2rpo.batch_totals(mask, entropies=entropies, tasks=tasks, num_tasks=TASKS)
        if axis_name is not None:
            totals = reduce_totals(totals, axis_name=axis_name)
        terms, _ = g2rpo.g2rpo_loss(
            old + 0.1 * policy[None, :],
            old,
            advantages,
            mask,
            entropies=entropies,
            tasks=tasks,
            entropy_low=jnp.asarray([0.2, 2.6, 0.2]),
            entropy_high=jnp.asarray([0.6, 3.0, 0.4]),
            entropy_weight=0.2,
            totals=totals,
        )
        return terms.total, terms

    (_, expected), gradient = jax.value_and_grad(loss, has_aux=True)(policy, *arrays)
    assert all(expected[:2])
    assert expected.entropy

    def local(policy, *arrays):
        # The policy is the same everywhere, so JAX adds up its gradient over the devices.
        (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(policy, *arrays, "data")
        return jax.lax.psum(terms, "data"), gradient

    sharded = jax.shard_map(
        local, mesh=mesh_of(), in_specs=(ALL, *(ROWS,) * 5), out_specs=(ALL, ALL)
    )
    terms, ours = jax.jit(sharded)(policy, *arrays)
    np.testing.assert_allclose(jnp.stack(terms), jnp.stack(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours, gradient, rtol=1e-5, atol=1e-6)
    counts = jax.shard_map(
        lambda mask: reduce_totals(g2rpo.batch_totals(mask), axis_name="data"),
        mesh=mesh_of(),
        in_specs=ROWS,
        out_specs=ALL,
    )(mask)
    assert counts == g2rpo.batch_totals(mask)


def check_logprobs() -> None:
    """Differentiate the operator with tokens on eight devices and the weight on all."""
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.standard_normal((16, 10, 6)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((203, 6)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(203), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 203, (16, 10)))

    def loss(hidden, weight, bias, labels, tile):
        logprobs, entropy = logprobs_and_entropy(hidden, weight, labels, bias=bias, tile=tile)
        return jnp.sum(logprobs) + 0.3 * jnp.sum(entropy)

    def check(got, expected):
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    mesh = mesh_of()
    inputs = (hidden, weight, bias, labels)
    specs = (ROWS, ALL, ALL, ROWS)
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs, specs, strict=True)
    ]
    for tile in ((1000, 50), (48, 64)):
        function = jax.value_and_grad(partial(loss, tile=tile), argnums=(0, 1, 2))
        expected = jax.jit(function)(*inputs)

        def local(*arrays, function=function):
            value, gradients = function(*arrays)
            return jax.lax.psum(value, "data"), gradients

        out = (ALL, (ROWS, ALL, ALL))
        sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)
        compiled = jax.jit(sharded).lower(*placed).compile()
        check(compiled(*placed), expected)
        # One reduction of each gradient, not one for each tile.
        assert compiled.as_text().count(" all-reduce(") <= 3
        compiled = jax.jit(function).lower(*placed).compile()
        check(compiled(*placed), expected)
        text = compiled.as_text()
        assert not any(f" {name}(" in text for name in ("all-gather", "all-to-all")), tile


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    checks = {
        "advantages": check_advantages,
        "losses": check_losses,
        "logprobs": check_logprobs,
    }
    jax.config.update("jax_default_matmul_precision", "highest")
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        checks[sys.argv[1]](*sys.argv[2:])
