"""The objective: its terms, and that the slices of a mini-batch add up to it."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo import (
    BatchTotals,
    LossTerms,
    batch_totals,
    entropy_penalty,
    g2rpo_loss,
    kl_penalty,
    policy_loss,
    task_means,
)

LOW = np.asarray([0.2, 0.9, 0.5, 0.1])
HIGH = np.asarray([0.4, 1.2, np.inf, 0.3])
WEIGHTS = np.asarray([0.5, 2.0, 1.5, 9.0])


def make(rng, size=8):
    logprobs = -np.abs(rng.standard_normal((size, 6)))
    mask = rng.random((size, 6)) < 0.7
    mask[3] = False
    old, ref = (logprobs + 0.3 * rng.standard_normal((size, 6)) for _ in range(2))
    entropies = np.abs(rng.standard_normal((size, 6)))
    tasks = np.arange(size) % 3
    advantages, length_advantages = rng.standard_normal((2, size))
    return {
        "positional": [np.where(mask, logprobs, np.nan), old, advantages, mask],
        "entropies": np.where(mask, entropies, np.inf),
        "tasks": tasks,
        "length_advantages": length_advantages,
        "ref_logprobs": ref,
    }


def loss_of(convert, batch, rows=slice(None), **options):
    given = {k: convert(v[rows]) for k, v in batch.items() if k != "positional"}
    return g2rpo_loss(
        *(convert(x[rows]) for x in batch["positional"]),
        **given,
        entropy_low=convert(LOW),
        entropy_high=convert(HIGH),
        beta=0.05,
        **options,
    )


def test_every_term_is_that_of_its_own_function(library, rng):
    batch = make(rng)
    terms, metrics = loss_of(library.array, batch)
    assert isinstance(terms, LossTerms)
    arrays = [library.array(x) for x in batch["positional"]]
    policy, base = policy_loss(*arrays)
    length, _ = policy_loss(*arrays[:2], library.array(batch["length_advantages"]), arrays[3])
    low, high = library.array(LOW), library.array(HIGH)
    entropies, tasks = library.array(batch["entropies"]), library.array(batch["tasks"])
    means, present = task_means(entropies, arrays[3], tasks, 4)
    mask = batch["positional"][3]
    kl = kl_penalty(arrays[0], library.array(batch["ref_logprobs"]), old_logprobs=arrays[1])
    expected = {
        "policy": float(policy),
        "length": 0.1 * float(length),
        "entropy": 0.02 * float(entropy_penalty(means, low, high, present=present)),
        "kl": 0.05 * library.numpy(kl)[mask].mean(),
    }
    for name, value in expected.items():
        assert float(getattr(terms, name)) == pytest.approx(value, rel=1e-5), name
        assert value != 0
    assert float(terms.total) == float(terms.policy + terms.length + terms.entropy + terms.kl)
    assert set(metrics) == {*base, "entropy", "kl"}
    assert float(metrics["entropy"]) == pytest.approx(batch["entropies"][mask].mean(), rel=1e-5)


def by_hand(batch, tasks):
    """Return the metrics of each task from the tokens of its rows."""
    logprobs, old, advantages, mask = batch["positional"]
    found = {}
    for task in range(tasks):
        rows = mask & (batch["tasks"] == task)[:, None]
        change, away = ((logprobs - other)[rows] for other in (old, batch["ref_logprobs"]))
        ratio = np.exp(change)
        signs = np.broadcast_to(advantages[:, None], mask.shape)[rows]
        low, high = (ratio < 0.8) & (signs < 0), (ratio > 1.3) & (signs > 0)
        columns = {
            "kl_old": ratio - 1 - change,
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low | high,
            "clip_ratio/dual_mean": (ratio > 3) & (signs < 0),
            "ratio/mean": ratio,
            "ratio/max": ratio,
            "entropy": batch["entropies"][rows],
            "kl": ratio * (np.exp(-away) + away - 1),
        }
        for name, values in columns.items():
            value = values.max(initial=0) if name.endswith("/max") else values.sum()
            if not name.endswith("/max"):
                value = value / max(rows.sum(), 1)
            found.setdefault(f"tasks/{name}", []).append(value)
    return found


def test_metrics_by_task_are_those_of_a_loop(library, rng):
    """Three tasks of four have responses, one of which has no token."""
    batch = make(rng, size=24)
    _, plain = loss_of(library.array, batch)
    _, metrics = loss_of(library.array, batch, num_tasks=4)
    expected = by_hand(batch, 4)
    assert set(metrics) == {*plain, *expected}
    for name, values in expected.items():
        assert np.ptp(values[:3]) > 0 or "dual" in name, name
        found = library.numpy(metrics[name])
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6, err_msg=name)
    for name, value in plain.items():
        assert float(metrics[name]) == float(value)


@pytest.mark.parametrize("with_entropies", [True, False])
def test_metrics_of_tasks_add_up_over_slices(library, rng, with_entropies):
    """Those of a slice without responses are 0."""
    batch = make(rng, size=24)
    if not with_entropies:
        del batch["entropies"]
    _, whole = loss_of(library.array, batch, num_tasks=4)
    of_tasks = {"tasks": library.array(batch["tasks"]), "num_tasks": 4}
    if with_entropies:
        of_tasks["entropies"] = library.array(batch["entropies"])
    totals = batch_totals(library.array(batch["positional"][3]), **of_tasks)
    slices = [slice(0, 3), slice(3, 4), slice(4, 4), slice(4, 24)]
    parts = [loss_of(library.array, batch, rows, totals=totals, num_tasks=4)[1] for rows in slices]
    for name in (name for name in whole if name.startswith("tasks/")):
        found = np.stack([library.numpy(part[name]) for part in parts])
        assert not found[2].any()
        joined = found.max(0) if name.endswith("/max") else found.sum(0)
        np.testing.assert_allclose(joined, library.numpy(whole[name]), rtol=1e-5, atol=1e-6)


def test_terms_without_inputs_are_0(library, rng):
    terms, metrics = g2rpo_loss(*map(library.array, make(rng)["positional"]))
    assert float(terms.total) == float(terms.policy) != 0
    assert [float(t) for t in terms[2:]] == [0, 0, 0]
    assert "kl" not in metrics


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "task"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_values_and_gradients_of_slices_add_up_to_those_of_the_batch(rng, name, aggregation):
    batch = make(rng)
    options = {"aggregation": aggregation, "num_tasks": 4}
    if aggregation == "constant":
        options["max_completion_length"] = 6
    coefficients = np.asarray([0.02, 0.5, 0.1, 0.3])
    slices = [slice(0, 3), slice(3, 4), slice(4, 8)]
    values, gradients = (torch_slices if name == "torch" else jax_slices)(
        batch, [slice(None), *slices], coefficients, options
    )
    np.testing.assert_allclose(np.sum(values[1:], axis=0), values[0], atol=1e-14)
    assert np.all(np.asarray(values[0]) != 0)
    for gradient in gradients:
        np.testing.assert_allclose(np.concatenate(gradient[1:]), gradient[0], atol=1e-15)


def torch_slices(batch, slices, coefficients, options):
    import torch

    totals = batch_totals(
        torch.tensor(batch["positional"][3]),
        entropies=torch.tensor(batch["entropies"]),
        tasks=torch.tensor(batch["tasks"]),
        num_tasks=4,
    )
    values, gradients = [], ([], [])
    for number, rows in enumerate(slices):
        leaves = []

        def convert(array, leaves=leaves):
            leaves.append(torch.tensor(array, requires_grad=array.dtype.kind == "f"))
            return leaves[-1]

        terms, _ = loss_of(
            convert,
            batch,
            rows,
            totals=totals if number else None,
            entropy_weight=torch.tensor(coefficients),
            task_weights=torch.tensor(WEIGHTS),
            **options,
        )
        terms.total.backward()
        values.append([t.item() for t in terms])
        by_shape = [x for x in leaves if x.ndim == 2 and x.grad is not None]
        gradients[0].append(by_shape[1].grad.numpy())
        gradients[1].append(by_shape[0].grad.numpy())
    return values, gradients


def jax_slices(batch, slices, coefficients, options):
    import jax

    values, gradients = [], ([], [])
    with jax.enable_x64(True):
        jnp = jax.numpy
        totals = batch_totals(
            jnp.asarray(batch["positional"][3]),
            entropies=jnp.asarray(batch["entropies"]),
            tasks=jnp.asarray(batch["tasks"]),
            num_tasks=4,
        )
        for number, rows in enumerate(slices):

            def total(logprobs, entropies, rows=rows, number=number):
                rest = [jnp.asarray(x[rows]) for x in batch["positional"][1:]]
                terms, _ = g2rpo_loss(
                    logprobs,
                    *rest,
                    entropies=entropies,
                    tasks=jnp.asarray(batch["tasks"][rows]),
                    length_advantages=jnp.asarray(batch["length_advantages"][rows]),
                    ref_logprobs=jnp.asarray(batch["ref_logprobs"][rows]),
                    entropy_low=jnp.asarray(LOW),
                    entropy_high=jnp.asarray(HIGH),
                    beta=0.05,
                    totals=totals if number else None,
                    entropy_weight=jnp.asarray(coefficients),
                    task_weights=jnp.asarray(WEIGHTS),
                    **options,
                )
                return terms.total, terms

            given = [jnp.asarray(x[rows]) for x in (batch["positional"][0], batch["entropies"])]
            grads, terms = jax.grad(total, argnums=(0, 1), has_aux=True)(*given)
            values.append([float(t) for t in terms])
            for kept, gradient in zip(gradients, grads, strict=True):
                kept.append(np.asarray(gradient))
    return values, gradients


def test_the_entropy_bounds_apply_to_the_mean_over_the_whole_batch(library):
    """Two slices on either side of the band, whose mean is inside: no penalty, no gradient."""
    zeros, mask = np.zeros((1, 4)), np.ones((1, 4), bool)
    totals = BatchTotals(8, 2, *(library.array(np.asarray([v])) for v in (8.0, 0.4)))
    for entropy in (0.0, 0.8):
        terms, _ = g2rpo_loss(
            *map(library.array, (zeros, zeros, np.zeros(1), mask)),
            entropies=library.array(zeros + entropy),
            tasks=library.array(np.asarray([0])),
            entropy_low=library.array(np.asarray([0.2])),
            entropy_high=library.array(np.asarray([0.6])),
            totals=totals,
        )
        assert float(terms.entropy) == 0


def test_an_absent_task_with_an_infinite_bound_adds_nothing(library):
    zeros, mask = np.zeros((2, 3)), np.zeros((2, 3), bool)
    terms, _ = g2rpo_loss(
        *map(library.array, (zeros, zeros, np.zeros(2), mask)),
        entropies=library.array(zeros + np.nan),
        tasks=library.array(np.asarray([0, 5])),
        entropy_low=library.array(np.asarray([0.2, 0.2])),
        entropy_high=library.array(np.asarray([np.inf, np.inf])),
    )
    assert [float(t) for t in terms] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("kl_kind", ["k1", "k2", "k3", "k3-weighted"])
def test_the_gradient_of_the_objective_is_that_of_finite_differences(rng, kl_kind):
    import torch

    batch = make(rng)
    positional = [torch.tensor(x) for x in batch["positional"]]
    rest = {k: torch.tensor(v) for k, v in batch.items() if k not in ("positional", "entropies")}
    mask = positional[3]

    def total(logprobs, entropies):
        terms, _ = g2rpo_loss(
            torch.where(mask, logprobs, torch.nan),
            *positional[1:],
            entropies=torch.where(mask, entropies, torch.inf),
            entropy_low=torch.tensor(LOW),
            entropy_high=torch.tensor(HIGH),
            beta=0.3,
            kl_kind=kl_kind,
            **rest,
        )
        return terms.total

    inputs = [
        torch.where(mask, torch.tensor(x), 0.5).requires_grad_()
        for x in (batch["positional"][0], batch["entropies"])
    ]
    assert torch.autograd.gradcheck(total, inputs)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(total(*inputs), inputs))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "task"])
def test_task_weights_of_one_change_nothing(library, rng, aggregation):
    batch = make(rng)
    longest = 6 if aggregation == "constant" else None
    options = {"num_tasks": 4, "aggregation": aggregation, "max_completion_length": longest}
    plain, _ = loss_of(library.array, batch, **options)
    weighted, _ = loss_of(library.array, batch, **options, task_weights=library.array(np.ones(4)))
    assert [float(term) for term in weighted] == [float(term) for term in plain]


@pytest.mark.parametrize("aggregation", ["token", "sequence", "task"])
def test_a_task_weight_scales_its_task_s_part_of_the_policy_and_length_terms(rng, aggregation):
    import torch

    batch = make(rng)

    def gradient(weights, **options):
        leaf = torch.tensor(np.nan_to_num(batch["positional"][0]), requires_grad=True)
        terms, _ = g2rpo_loss(
            leaf,
            *map(torch.tensor, batch["positional"][1:]),
            tasks=torch.tensor(batch["tasks"]),
            num_tasks=4,
            length_advantages=torch.tensor(batch["length_advantages"]),
            aggregation=aggregation,
            task_weights=torch.tensor(weights),
            **options,
        )
        terms.total.backward()
        return leaf.grad.numpy()

    plain, weighted = gradient(np.ones(4)), gradient(WEIGHTS)
    factors = WEIGHTS[batch["tasks"]][:, None]
    np.testing.assert_allclose(weighted, plain * factors, atol=1e-16)
    # And nothing of the KL term.
    with_kl = {"ref_logprobs": torch.tensor(batch["ref_logprobs"]), "beta": 0.3}
    by_kl = gradient(np.ones(4), **with_kl) - plain
    np.testing.assert_allclose(gradient(WEIGHTS, **with_kl) - weighted, by_kl, atol=1e-15)


def test_every_task_counts_the_same_however_long_its_responses():
    """Two tokens of one task and ninety of another, on policy; the third task is absent."""
    import torch

    leaf = torch.full((3, 30), -1.0, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(3, 30, dtype=torch.bool)
    mask[0, 2:] = False
    tasks = torch.tensor([1, 0, 0])
    loss, _ = policy_loss(
        leaf,
        leaf.detach(),
        torch.ones(3, dtype=torch.float64),
        mask,
        aggregation="task",
        tasks=tasks,
        num_tasks=3,
    )
    loss.backward()
    assert loss.item() == pytest.approx(-1)
    assert leaf.grad.sum(1).tolist() == pytest.approx([-0.5, -0.25, -0.25])


def test_a_response_of_no_task_is_left_out_of_the_mean_over_tasks_and_has_no_weight(library):
    old, mask = np.zeros((2, 2)), np.ones((2, 2), bool)
    arrays = [library.array(x) for x in (old, old, np.asarray([1.0, 3.0]), mask)]
    options = {"tasks": library.array(np.asarray([0, 7])), "num_tasks": 2}
    loss, _ = policy_loss(*arrays, aggregation="task", **options)
    assert float(loss) == -1
    weights = library.array(np.asarray([5.0, 9.0]))
    loss, _ = policy_loss(*arrays, **options, task_weights=weights)
    assert float(loss) == -(5 * 2 + 3 * 2) / 4


def test_no_token_at_all_is_zero_for_the_mean_over_tasks(library):
    zeros, mask = np.zeros((2, 3)), np.zeros((2, 3), bool)
    loss, _ = policy_loss(
        *map(library.array, (zeros, zeros, np.ones(2), mask)),
        aggregation="task",
        tasks=library.array(np.asarray([0, 1])),
        num_tasks=2,
        task_weights=library.array(np.ones(2)),
    )
    assert float(loss) == 0
