"""The core's losses on PyTorch: gradients, transforms, half precision."""

from __future__ import annotations

import warnings

import pytest
import torch

from g2rpo import (
    BatchTotals,
    LossOptions,
    batch_totals,
    entropy_from_logits,
    entropy_penalty,
    g2rpo_loss,
    kl_penalty,
    policy_loss,
    task_means,
)

LOW, HIGH = torch.tensor([0.1, 3.0, 0.2]), torch.tensor([0.5, 9.0, torch.inf])
TASKS = torch.tensor([0, 1, 2, 0, 1])
LOSS_TYPES = ("ppo", "gspo", "cispo", "sapo")


def make(dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    mask = torch.rand(5, 6, generator=generator) < 0.7
    logprobs, entropies = -normal(5, 6).abs(), normal(5, 6).abs() + 1
    arrays = {
        "logprobs": logprobs.masked_fill(~mask, -torch.inf),
        "entropies": entropies,
        "old": logprobs + 0.2 * normal(5, 6),
        "ref": logprobs + 0.3 * normal(5, 6),
        "advantages": normal(5),
        "length": normal(5),
    }
    return {name: x.to(dtype) for name, x in arrays.items()}, mask


def total_of(arrays, mask, **options):
    terms, _ = g2rpo_loss(
        arrays["logprobs"],
        arrays["old"],
        arrays["advantages"],
        mask,
        entropies=arrays["entropies"],
        tasks=TASKS,
        entropy_low=LOW,
        entropy_high=HIGH,
        length_advantages=arrays["length"],
        ref_logprobs=arrays["ref"],
        beta=0.1,
        **options,
    )
    return terms.total


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_only_logprobs_and_entropies_get_gradients(loss_type):
    arrays, mask = make()
    for array in arrays.values():
        array.requires_grad_()
    total_of(arrays, mask, loss_type=loss_type).backward()
    assert arrays["logprobs"].grad[mask].ne(0).all()
    assert arrays["logprobs"].grad[~mask].eq(0).all()
    # The tasks outside of their bands: the first is above its own, the second below.
    outside = mask & (TASKS < 2)[:, None]
    assert arrays["entropies"].grad[outside].ne(0).all()
    assert arrays["entropies"].grad[~outside].eq(0).all()
    constants = ("old", "ref", "advantages", "length")
    assert all(arrays[name].grad is None for name in constants)


def test_the_gradient_reaches_the_logits():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(5, 6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(5, 6, dtype=torch.bool)

    def penalty(logits):
        means, present = task_means(entropy_from_logits(logits), mask, TASKS, 3)
        return entropy_penalty(means, LOW.double(), HIGH.double(), present)

    def distance(logits):
        logprobs = logits.log_softmax(-1)[..., 0]
        # Of the others the gradient is not that of the value.
        return kl_penalty(logprobs, torch.full_like(logprobs, -2), kind="k3").sum()

    torch.autograd.gradcheck(penalty, logits)
    torch.autograd.gradcheck(distance, logits)
    assert all(torch.autograd.grad(f(logits), logits)[0].any() for f in (penalty, distance))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_functional_gradient_equals_that_of_backward(loss_type):
    arrays, mask = make()

    def total(logprobs, entropies):
        given = arrays | {"logprobs": logprobs, "entropies": entropies}
        return total_of(given, mask, loss_type=loss_type)

    leaves = [arrays[name].clone().requires_grad_() for name in ("logprobs", "entropies")]
    expected = torch.autograd.grad(total(*leaves), leaves)
    given = [leaf.detach() for leaf in leaves]
    for ours, theirs in zip(torch.func.grad(total, argnums=(0, 1))(*given), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": name} for name in LOSS_TYPES),
        {"options": LossOptions("dapo", aggregation="task", kl_kind="k3+"), "num_tasks": 3},
    ],
)
def test_the_compiled_loss_has_no_graph_break_and_the_same_gradient(options):
    """With the totals of a mini-batch, as a trainer calls it."""
    arrays, mask = make()
    totals = batch_totals(mask, entropies=arrays["entropies"], tasks=TASKS, num_tasks=3)
    gradients = []
    for is_compiled in (False, True):
        given = {name: x.clone().requires_grad_() for name, x in arrays.items()}

        def total(logprobs, entropies, tokens, sequences, given=given):
            counted = BatchTotals(tokens, sequences, *totals[2:])
            inputs = given | {"logprobs": logprobs, "entropies": entropies}
            return total_of(inputs, mask, totals=counted, **options)

        with warnings.catch_warnings():
            # array-api-compat caches its type checks, and Dynamo warns about the cache.
            warnings.filterwarnings("ignore", message=".*lru_cache")
            function = torch.compile(total, fullgraph=True) if is_compiled else total
            function(given["logprobs"], given["entropies"], *totals[:2]).backward()
        gradients.append([given[name].grad for name in ("logprobs", "entropies")])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_bf16_accumulates_in_float32(aggregation):
    """Four thousand tokens: a sum in bf16 stops growing at 256 times a term."""
    size = (8, 500)
    logprobs = torch.full(size, -1.0, dtype=torch.bfloat16, requires_grad=True)
    entropies = torch.full(size, 2.0, dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones(8, dtype=torch.bfloat16)
    given = (logprobs, logprobs.detach(), ones, torch.ones(size, dtype=torch.bool))
    loss, metrics = policy_loss(*given, aggregation=aggregation)
    assert loss.dtype == torch.float32
    assert loss.item() == -1
    assert all(metric.dtype == torch.float32 for metric in metrics.values())
    tasks = torch.zeros(8, dtype=torch.int64)
    terms, _ = g2rpo_loss(
        *given,
        entropies=entropies,
        tasks=tasks,
        entropy_low=torch.tensor([0.5]),
        entropy_high=torch.tensor([1.5]),
        entropy_weight=1.0,
        aggregation=aggregation,
    )
    assert terms.entropy.item() == 0.5
    terms.total.backward()
    assert logprobs.grad.dtype == entropies.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        entropies.grad.float(), torch.full(size, 1 / 4000), rtol=4e-3, atol=0
    )
    counted = batch_totals(given[3], entropies=entropies, tasks=tasks, num_tasks=1)
    assert counted.tokens.item() == 4000
    assert counted.task_entropy.item() == 2
