"""Random rewards and losses."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import g2rpo
from g2rpo import testing
from g2rpo.advantages import takes_lengths

from .count import Count

LIBRARIES = ("numpy", "array_api_strict", "torch", "jax")
LOSS_TYPES = ("ppo", "gspo", "cispo", "sapo")
AGGREGATIONS = ("token", "sequence", "task", "constant")


def drawn(number: int, strategy: Any, use: Callable[..., None]) -> None:
    """Call a function on as many examples of a strategy; the same ones each time."""

    @seed(0)
    @settings(
        max_examples=max(1, number),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(example: Any) -> None:
        use(example)

    each()


def converter(library: str) -> Callable[[Any], Any]:
    """Return what makes an array of a library from NumPy's."""
    return importlib.import_module("jax.numpy" if library == "jax" else library).asarray


def padded(array: np.ndarray, fill: Any, size: int = 64) -> np.ndarray:
    """Lengthen an array to a multiple of a size: JAX compiles each shape anew."""
    missing = -len(array) % size
    rest = np.full((missing, *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, rest])


def reward_batches_of(components: int | None, *, grid: bool) -> Any:
    """Return a strategy of batches in float32, with components on a grid if asked."""
    kinds = {} if not grid else {"kinds": ("binary", "levels", "constant")}
    found = testing.reward_batches(components=components, dtype="float32", **kinds)
    if not grid:
        return found

    def on_grid(batch: Any, step: float) -> Any:
        return batch.with_rewards((np.round(batch.rewards / step) * step).astype(np.float32))

    return st.builds(on_grid, found, st.sampled_from([0.1, 0.05]))


def advantages_of(name: str, library: str, batch: Any, weights: list[float] | None) -> np.ndarray:
    """Call an estimator of the registry on arrays of a library; return NumPy's."""
    estimator, make = g2rpo.ESTIMATORS[name], converter(library)
    options: dict[str, Any] = {} if weights is None else {"component_weights": weights}
    if takes_lengths(estimator):
        options["lengths"] = make(padded(batch.lengths, 1).astype(np.int32))
    # What is added is a prompt of a task of its own, without any reward.
    groups, tasks = (
        padded(np.unique(labels, return_inverse=True)[1], 10**6) for labels in batch[1:]
    )
    found = estimator(
        make(padded(batch.rewards, np.nan)),
        make(groups.astype(np.int32)),
        make(tasks.astype(np.int32)),
        **options,
    )
    return np.asarray(found)[: len(batch.rewards)]


def reward_batches(share: float) -> Iterator[Count]:
    """Try every estimator on every library, on batches of every kind; 100,000 in all."""
    plain = Count("advantages are finite, 0 where the reward is absent, on any reward batch")
    names = list(g2rpo.ESTIMATORS)

    def use(batch: Any) -> None:
        turn = plain.tried
        library = LIBRARIES[turn % 4]
        name = names[turn // 4 % len(names)]
        weights = None if batch.rewards.ndim == 1 else [0.9, 0.1][: batch.rewards.shape[1]]
        # A linear rescale of infinite or near-infinite rewards has no finite result.
        is_ordinary = bool((np.abs(np.nan_to_num(batch.rewards)) < 1e6).all())
        # NumPy warns of overflow where PyTorch and JAX do not.
        with plain.trying((name, library, batch)), np.errstate(all="ignore"):
            found = advantages_of(name, library, batch, weights)
            assert found.shape == batch.groups.shape
            if is_ordinary or name == "gaussian":
                assert np.isfinite(found).all()
            absent = np.isnan(batch.rewards)
            absent = absent.all(axis=1) if absent.ndim == 2 else absent
            assert not found[absent].any()

    for components, grid in ((None, False), (2, False), (2, True)):
        drawn(math.ceil(33_334 * share), reward_batches_of(components, grid=grid), use)
    yield plain
    exact = Count("Gaussian advantages keep every invariant, to the last bit")
    batches = max(1, int(10_000 * share / len(testing.INVARIANTS) / 2))
    for dtype in ("float32", "float64"):
        results = testing.verify_advantages(
            g2rpo.gaussian_advantages,
            tolerance=0,
            dtype=dtype,
            batches=testing.reward_batches(dtype=dtype),
            max_examples=batches,
        )
        for result in results:
            exact.tried += batches
            if not result.holds:
                exact.broken.append(f"{result.invariant.name}: {result.counterexample}")
    yield exact


def losses(share: float) -> Iterator[Count]:
    """Try every loss type and aggregation on 10,000 extreme inputs, with gradients."""
    import torch

    count = Count("losses and gradients are finite, or the error names an argument")
    rng = np.random.default_rng(0)
    for turn in range(int(10_000 * share)):
        rows, tokens, num_tasks = (int(rng.integers(1, high)) for high in (5, 7, 4))
        scale = 10.0 ** rng.integers(-3, 4)
        new, old, ref = (-np.abs(rng.normal(0, scale, (rows, tokens))) for _ in range(3))
        new[rng.random(new.shape) < 0.1] = -1e30
        mask = rng.random((rows, tokens)) < rng.choice([0.0, 0.5, 1.0])
        weight = rng.choice([0.02, math.nan, 0.0], p=[0.8, 0.1, 0.1])
        leaf = torch.tensor(new, dtype=torch.float32, requires_grad=True)
        entropies = torch.tensor(np.abs(ref), dtype=torch.float32, requires_grad=True)
        options = {
            "loss_type": LOSS_TYPES[turn % 4],
            "aggregation": AGGREGATIONS[turn // 4 % 4],
            "max_completion_length": tokens if turn // 4 % 4 == 3 else None,
        }
        what = (turn, options, new, old, mask, weight)
        with count.trying(what):
            try:
                terms, _ = g2rpo.g2rpo_loss(
                    leaf,
                    torch.tensor(old, dtype=torch.float32),
                    torch.tensor(rng.normal(0, 2, rows), dtype=torch.float32),
                    torch.tensor(mask),
                    entropies=entropies,
                    tasks=torch.tensor(rng.integers(0, num_tasks, rows)),
                    num_tasks=num_tasks,
                    entropy_low=torch.full((num_tasks,), 0.2),
                    entropy_high=torch.full((num_tasks,), 0.6),
                    entropy_weight=float(weight),
                    ref_logprobs=torch.tensor(ref, dtype=torch.float32),
                    beta=0.01,
                    **{name: value for name, value in options.items() if value is not None},
                )
            except ValueError as error:
                if not (math.isnan(weight) and "entropy_weight" in str(error)):
                    raise
                continue
            terms.total.backward()
            assert all(bool(torch.isfinite(term)) for term in terms)
            assert bool(torch.isfinite(leaf.grad).all() and torch.isfinite(entropies.grad).all())
    yield count
