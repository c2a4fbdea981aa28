"""Every public function gives the same values and gradients on JAX, compiled, as on PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import g2rpo
import g2rpo_jax
import g2rpo_torch

from .cases import CASES, Case, estimator_case

ALL_CASES = CASES + [estimator_case(name) for name in g2rpo.ESTIMATORS]
TRACEABLE = [case for case in ALL_CASES if case.is_traceable]
# Piecewise constant, or constants to differentiation by contract.
FLAT = {
    "match_gaussian",
    "gaussian_advantages",
    "gaussian",
    "pass_at_k_advantages",
    "pass@k",
    "batch_totals",
    "sampler_weights",
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
# They take no arrays: the bindings offer the very same objects.
WITHOUT_ARRAYS = {"encode_labels", "register_estimator", "register_loss"}
# On the host, in NumPy, from arrays of any library; tested in tests/core.
ON_THE_HOST = {"Advantages", "LengthCalibration", "Shaping", "ShapingOptions", "rollout_metrics"}
STATES = {"EMAState"}
# Numbers and arrays under names, which the functions above take and return.
RECORDS = {
    "BatchTotals",
    "EntropyBounds",
    "LengthTarget",
    "LengthTargets",
    "LossOptions",
    "LossTerms",
}
COMPARED_ELSEWHERE = {
    "GatheredRollouts": "test_parity_of_bindings.py",
    "gather_rollouts": "test_parity_of_bindings.py",
    "logprobs_and_entropy": "test_logprobs.py",
    "reduce_totals": "test_parity_of_bindings.py",
}
ONLY_ON_PYTORCH = {
    "LinearHead": "takes a module of PyTorch apart",
    "linear_head": "takes a module of PyTorch apart",
    "fused_g2rpo_loss": "compared with what it fuses in test_parity_of_bindings.py",
}

every_traceable = pytest.mark.parametrize("case", TRACEABLE, ids=lambda case: case.name)


def in_both_precisions() -> list[Any]:
    """Return case and dtype; fast is the first case of each function, in single precision."""
    seen: set[str] = set()
    found = []
    for case in TRACEABLE:
        for dtype in TOLERANCE:
            is_fast = dtype == "float32" and case.name not in seen | set(g2rpo.ESTIMATORS)
            marks = [] if is_fast else [pytest.mark.slow]
            found.append(pytest.param(case, dtype, marks=marks, id=f"{case.name}-{dtype}"))
        seen.add(case.name)
    return found


def test_every_public_name_is_compared():
    """A new public name needs a case, or an entry for another test that compares it."""
    functions = {name for name in g2rpo.__all__ if inspect.isfunction(getattr(g2rpo, name))}
    assert functions - WITHOUT_ARRAYS - ON_THE_HOST == {case.name for case in CASES} & functions
    assert {name for name in g2rpo.__all__ if hasattr(getattr(g2rpo, name), "from_json")} == STATES
    rest = set(g2rpo.__all__) - functions - STATES - ON_THE_HOST
    assert rest == {"ESTIMATORS", "LOSSES", "diagnostics"} | RECORDS
    measures = {
        name
        for name, value in vars(g2rpo.diagnostics).items()
        if inspect.isfunction(value) and value.__module__ == "g2rpo.diagnostics" and name[0] != "_"
    }
    assert measures == {"equity", "normality", "outlier_influence", "squared_shares"}
    assert set(g2rpo_jax.__all__) == set(COMPARED_ELSEWHERE)
    assert set(g2rpo_torch.__all__) == {*COMPARED_ELSEWHERE, *ONLY_ON_PYTORCH}


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    with jax.enable_x64(dtype == "float64"):
        yield


def inputs_of(case: Case, dtype: str, seed: int, size: int = 24) -> list[np.ndarray]:
    arrays = case.inputs(np.random.default_rng(seed), size)
    return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]


def cotangents_like(values: list[np.ndarray]) -> list[np.ndarray]:
    """Return a weight for every element of every floating result."""
    rng = np.random.default_rng(7)
    return [rng.standard_normal(np.shape(v)).astype(v.dtype) for v in values]


def is_floating(values) -> list[bool]:
    return [np.asarray(v).dtype.kind == "f" for v in values]


def on_torch(case: Case, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the values, and the gradients of their weighted sum."""
    tensors = [torch.tensor(a) for a in arrays]
    for i in case.by:
        tensors[i].requires_grad_()
    results = jax.tree.leaves(case.call(g2rpo, *tensors))
    values = [r.detach().numpy() if isinstance(r, torch.Tensor) else np.asarray(r) for r in results]
    grads = cotangents_like([v for v in values if v.dtype.kind == "f"])
    floating = [r for r, yes in zip(results, is_floating(values), strict=True) if yes]
    if case.by:
        total = sum(
            (torch.where(torch.isfinite(r), r, 0) * torch.tensor(p)).sum()
            for r, p in zip(floating, grads, strict=True)
        )
        if total.requires_grad:
            total.backward()
    zeros = [torch.zeros_like(tensors[i]) for i in case.by]
    grads = [tensors[i].grad for i in case.by]
    return values, [(z if g is None else g).numpy() for g, z in zip(grads, zeros, strict=True)]


def gradient_of(case: Case, grads: list[np.ndarray]):
    """Return ``function(arrays) -> values, gradients``, for ``jax.jit`` and ``jax.vmap``."""

    def function(arrays):
        def total(leaves):
            given = list(arrays)
            for i, leaf in zip(case.by, leaves, strict=True):
                given[i] = leaf
            values = jax.tree.leaves(case.call(g2rpo, *given))
            floating = [v for v in values if jnp.issubdtype(v.dtype, jnp.floating)]
            weighted = (
                jnp.sum(jnp.where(jnp.isfinite(v), v, 0.0) * p)
                for v, p in zip(floating, grads, strict=True)
            )
            return sum(weighted), values

        leaves = [arrays[i] for i in case.by]
        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(leaves)
        return values, gradients

    return function


def assert_same(got, expected, tolerance: float) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape
        assert ours.dtype.kind == theirs.dtype.kind
        if theirs.dtype.kind == "f" and theirs.size:
            finite = np.isfinite(theirs)
            largest = np.abs(theirs[finite]).max(initial=1.0)
            np.testing.assert_array_equal(ours[~finite], theirs[~finite])
            np.testing.assert_allclose(
                ours[finite], theirs[finite], rtol=0, atol=tolerance * largest
            )
        else:
            np.testing.assert_array_equal(ours, theirs)


def counting(function):
    """Return the function with a ``count`` of how often it is traced.

    JAX's own count of what it has compiled is of a cache that all functions of a process share.
    """

    def counted(arrays):
        counted.count += 1
        return function(arrays)

    counted.count = 0
    return counted


@pytest.mark.parametrize(("case", "dtype"), in_both_precisions())
def test_values_and_gradients_agree_with_pytorch_after_one_compilation(case, dtype):
    with precision(dtype):
        arrays = inputs_of(case, dtype, seed=1)
        values, gradients = on_torch(case, arrays)
        assert all(np.isfinite(g).all() for g in gradients)
        assert any(g.any() for g in gradients) == (case.name not in FLAT)
        grads = [
            jnp.asarray(p) for p in cotangents_like([v for v in values if v.dtype.kind == "f"])
        ]
        traced = counting(gradient_of(case, grads))
        compiled = jax.jit(traced)
        ours = compiled([jnp.asarray(a) for a in arrays])
        floats = [x for x in jax.tree.leaves(ours) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {str(x.dtype) for x in floats} <= {dtype, "float32"}
        assert_same(ours[0], values, TOLERANCE[dtype])
        assert_same(ours[1], gradients, TOLERANCE[dtype])
        # Other values of the same shapes: other numbers of members in groups, right responses, ...
        for seed in (2, 3):
            compiled([jnp.asarray(a) for a in inputs_of(case, dtype, seed=seed)])
        assert traced.count == 1


@pytest.mark.slow
@every_traceable
def test_vmap_equals_a_loop_over_batches(case):
    batches = [inputs_of(case, "float32", seed=seed) for seed in (1, 2, 3)]
    expected = [on_torch(case, arrays) for arrays in batches]
    grads = cotangents_like([v for v in expected[0][0] if v.dtype.kind == "f"])
    function = gradient_of(case, [jnp.asarray(p) for p in grads])
    stacked = [jnp.stack([jnp.asarray(a) for a in arrays]) for arrays in zip(*batches, strict=True)]
    together = jax.jit(jax.vmap(function))(stacked)
    for i, (values, gradients) in enumerate(expected):
        assert_same([v[i] for v in together[0]], values, 2e-6)
        assert_same([g[i] for g in together[1]], gradients, 2e-6)


@pytest.mark.slow
@every_traceable
def test_a_new_batch_size_is_compiled_once(case):
    traced = counting(lambda arrays: jax.tree.leaves(case.call(g2rpo, *arrays)))
    function = jax.jit(traced)
    for number, size in enumerate((24, 36), start=1):
        for seed in (1, 2):
            arrays = inputs_of(case, "float32", seed=seed, size=size)
            assert_same(function([jnp.asarray(a) for a in arrays]), on_torch(case, arrays)[0], 1e-6)
        assert traced.count == number


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for c in ALL_CASES if not c.is_traceable], ids=lambda case: case.name
)
def test_functions_on_the_host_agree(case):
    arrays = inputs_of(case, "float32", seed=1)
    ours = jax.tree.leaves(case.call(g2rpo, *(jnp.asarray(a) for a in arrays)))
    assert_same(ours, on_torch(case, arrays)[0], 1e-6)
