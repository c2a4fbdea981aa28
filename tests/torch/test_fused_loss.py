"""The fused loss against the core's loss of full logits."""

from __future__ import annotations

import pytest
import torch

from g2rpo import (
    LOSSES,
    LossOptions,
    batch_totals,
    entropy_from_logits,
    g2rpo_loss,
    register_loss,
)
from g2rpo_torch import fused_g2rpo_loss

from .conftest import plain

B, T, H, V = 6, 7, 5, 41
LOW, HIGH = torch.tensor([0.1, 3.0, 0.2]), torch.tensor([1.0, 9.0, torch.inf])
TASKS = torch.tensor([0, 1, 2, 0, 1, 2])


class Case:
    """A batch with an empty response, and all inputs of the loss."""

    def __init__(self, dtype=torch.float32, device="cpu"):
        generator = torch.Generator().manual_seed(7)

        def normal(*size):
            values = torch.randn(*size, generator=generator, dtype=torch.float64)
            return values.to(device, dtype)

        self.leaves = [normal(B, T, H), normal(V, H), normal(V)]
        self.mask = torch.rand(B, T, generator=generator).to(device) < 0.6
        self.mask[2] = False
        # Masked out, a token may be anything.
        self.labels = torch.randint(0, V, (B, T), generator=generator).to(device)
        self.tasks = TASKS.to(device)
        self.band = {
            "entropy_low": LOW.to(device),
            "entropy_high": HIGH.to(device),
            "entropy_weight": 0.5,
        }
        self.labels = self.labels.masked_fill(~self.mask, -100)
        logprobs, _ = self.plain_values()
        self.old = (logprobs + 0.3 * normal(B, T)).masked_fill(~self.mask, torch.nan)
        self.advantages = normal(B)
        self.options = {
            "length_advantages": normal(B),
            "ref_logprobs": logprobs + 0.5 * normal(B, T),
            "beta": 0.1,
            "importance_weights": 1 + 0.5 * normal(B, T).abs(),
        }
        for leaf in self.leaves:
            leaf.requires_grad_()

    def plain_values(self, temperature=0.8):
        hidden, weight, bias = self.leaves
        logits = (hidden @ weight.t() + bias) / temperature
        safe = self.labels.clamp(min=0)[..., None]
        return logits.log_softmax(-1).gather(-1, safe)[..., 0], entropy_from_logits(logits)

    def plain(self, *, band, **options):
        logprobs, entropies = self.plain_values()
        if band:
            options |= {"entropies": entropies, "tasks": self.tasks, **self.band}
        return g2rpo_loss(logprobs, self.old, self.advantages, self.mask, **self.options, **options)

    def fused(self, *, band, **options):
        hidden, weight, bias = self.leaves
        options = {"bias": bias, "temperature": 0.8} | (self.band if band else {}) | options
        return fused_g2rpo_loss(
            hidden,
            weight,
            self.labels,
            self.old,
            self.advantages,
            self.mask,
            self.tasks if band or "num_tasks" in options else None,
            **self.options,
            **options,
        )


def assert_same(case, ours, theirs, leaves=None, scale=3.0):
    leaves = leaves or case.leaves
    (terms, metrics), (expected, expected_metrics) = ours, theirs
    for name, term in expected._asdict().items():
        torch.testing.assert_close(getattr(terms, name), term, atol=1e-5, rtol=1e-5)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        torch.testing.assert_close(metrics[name], value, atol=1e-5, rtol=1e-5)
    gradients = (torch.autograd.grad(scale * x.total, leaves) for x in (terms, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 7, None])
@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss_type", ["ppo", "gspo", "cispo", "sapo"])  # one of each formula
def test_values_metrics_and_gradients_are_the_core_s(
    device, loss_type, aggregation, band, chunk_tokens
):
    case = Case(device=device)
    options = {
        "loss_type": loss_type,
        "aggregation": aggregation,
        "max_completion_length": 9 if aggregation == "constant" else None,
    }
    ours = case.fused(band=band, chunk_tokens=chunk_tokens, **options)
    assert_same(case, ours, case.plain(band=band, **options))


@pytest.mark.parametrize("weight", [0.3, torch.tensor([0.1, 0.2, 0.9])])
def test_totals_decide_which_entropies_are_out_of_bounds(weight):
    """The entropies of this call are on the other side of the bounds."""
    case = Case()
    totals = batch_totals(case.mask, entropies=torch.ones(B, T), tasks=TASKS, num_tasks=3)
    totals = totals._replace(task_entropy=torch.tensor([5.0, 1.0, 0.0]))
    options = {"band": True, "totals": totals} | {"entropy_weight": weight}
    plain_options = {k: v for k, v in options.items() if k != "entropy_weight"}
    logprobs, entropies = case.plain_values()
    expected = g2rpo_loss(
        logprobs,
        case.old,
        case.advantages,
        case.mask,
        entropies=entropies,
        tasks=TASKS,
        totals=plain_options["totals"],
        **case.options,
        **(case.band | {"entropy_weight": weight}),
    )
    assert_same(case, case.fused(**options, chunk_tokens=5), expected)


@pytest.mark.parametrize("loss_type", ["ppo", "gspo", "cispo", "sapo"])
def test_recomputed_logits_give_the_same_results(loss_type):
    case = Case()
    options = {"band": True, "loss_type": loss_type}
    assert_same(case, case.fused(**options, recompute_logits=True), case.plain(**options))


@pytest.mark.parametrize("band", [False, True])
@pytest.mark.parametrize("totals", [False, True])
def test_metrics_of_tasks_are_the_core_s(band, totals):
    case = Case()
    options = {"num_tasks": 3}
    if totals:
        options["totals"] = batch_totals(
            case.mask, entropies=case.plain_values()[1].detach(), tasks=TASKS, num_tasks=3
        )
    ours = case.fused(band=band, chunk_tokens=5, **options)
    assert ours[1]["tasks/clip_ratio/region_mean"].shape == (3,)
    plain = options if band else options | {"tasks": TASKS}
    assert_same(case, ours, case.plain(band=band, **plain))


@pytest.mark.parametrize("chunk_tokens", [1, 7, None])
@pytest.mark.parametrize("loss_type", ["ppo", "gspo"])
@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [("task", None), ("task", [0.5, 2.0, 3.0]), ("token", [0.5, 2.0, 3.0])],
)
def test_task_aggregation_and_task_weights_are_the_core_s(
    loss_type, aggregation, weights, chunk_tokens
):
    case = Case()
    options = {"loss_type": loss_type, "aggregation": aggregation, "num_tasks": 3}
    options["task_weights"] = None if weights is None else torch.tensor(weights)
    ours = case.fused(band=False, chunk_tokens=chunk_tokens, **options)
    assert_same(case, ours, case.plain(band=False, tasks=TASKS, **options))
    hidden, weight, bias = case.leaves
    totals = batch_totals(case.mask, tasks=TASKS, num_tasks=3)
    total = 0.0
    for rows in (slice(0, 2), slice(2, 6)):
        given = {k: v if k == "beta" else v[rows] for k, v in case.options.items()}
        tensors = (case.labels, case.old, case.advantages, case.mask, TASKS)
        terms, _ = fused_g2rpo_loss(
            hidden[rows],
            weight,
            *(tensor[rows] for tensor in tensors),
            bias=bias,
            temperature=0.8,
            totals=totals,
            chunk_tokens=chunk_tokens,
            **given,
            **options,
        )
        total = total + terms.total
    torch.testing.assert_close(total, ours[0].total)


@pytest.mark.parametrize("kl_kind", ["k1", "k2", "k3", "k1+", "k3+", "k3-weighted"])
def test_every_kind_of_kl_is_the_core_s(kl_kind):
    case, options = Case(), {"band": False, "options": LossOptions("dapo", kl_kind=kl_kind)}
    assert_same(case, case.fused(chunk_tokens=5, **options), case.plain(**options))


@pytest.mark.parametrize("ratio", ["token", "response"])
@pytest.mark.parametrize("chunk_tokens", [5, None])
def test_a_registered_loss_is_the_core_s(ratio, chunk_tokens):
    @register_loss("own", ratio=ratio, epsilon_high=0.2)
    def own(ratio, logprobs, advantages, *, epsilon_high):
        return -advantages * (ratio.clamp(max=1 + epsilon_high) + 0.1 * logprobs.square())

    try:
        case, options = Case(), {"band": True, "loss_type": "own"}
        assert_same(case, case.fused(chunk_tokens=chunk_tokens, **options), case.plain(**options))
    finally:
        del LOSSES["own"]


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="epsilon_low"):
        Case().fused(band=False, epsilon_low=0.1)


def test_losses_and_gradients_of_slices_add_up():
    case = Case(torch.float64)
    whole = case.fused(band=True)
    expected = torch.autograd.grad(whole[0].total, case.leaves)
    _, entropies = case.plain_values()
    totals = batch_totals(case.mask, entropies=entropies, tasks=TASKS, num_tasks=3)
    hidden, weight, bias = case.leaves
    total = 0.0
    for rows in (slice(0, 2), slice(2, 6)):
        options = {k: v if k == "beta" else v[rows] for k, v in case.options.items()}
        terms, _ = fused_g2rpo_loss(
            hidden[rows],
            weight,
            case.labels[rows],
            case.old[rows],
            case.advantages[rows],
            case.mask[rows],
            TASKS[rows],
            bias=bias,
            temperature=0.8,
            totals=totals,
            **options,
            **case.band,
        )
        total = total + terms.total
    torch.testing.assert_close(total, whole[0].total)
    for ours, theirs in zip(torch.autograd.grad(total, case.leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_token_advantages_and_tokens_without_a_gradient_are_the_core_s():
    """A group without signal, and no other term: only the first response has a gradient."""
    case = Case()
    case.options = {}
    case.advantages = torch.zeros(B, T)
    case.advantages[0] = torch.linspace(-1, 1, T)
    assert_same(case, case.fused(band=False, chunk_tokens=4), case.plain(band=False))
    assert_same(case, case.fused(band=False), case.plain(band=False))


def test_softcap_and_excluded_entries_are_the_core_s():
    case = Case()
    hidden, weight, bias = case.leaves
    excluded = torch.zeros(V, dtype=torch.bool)
    excluded[torch.tensor([e for e in range(V) if e not in case.labels])[:3]] = True
    bias = bias.detach().masked_fill(excluded, -torch.inf).requires_grad_()
    case.leaves[2] = bias
    # The old log-probabilities know no softcap: the ratio would make the KL term very large.
    kinds = {"loss_type": "sapo", "kl_kind": "k3"}
    options = kinds | case.options
    logprobs, entropies = plain(hidden, weight, case.labels.clamp(min=0), bias, 0.8, 2.0)
    logprobs = logprobs.masked_fill(~case.mask, 0.0)
    given = (logprobs, case.old, case.advantages, case.mask)
    expected = g2rpo_loss(*given, entropies=entropies, tasks=case.tasks, **case.band, **options)
    how = {"band": True, "softcap": 2.0, "chunk_tokens": 6} | kinds
    assert_same(case, case.fused(**how), expected)
    (gradient,) = torch.autograd.grad(case.fused(**how)[0].total, bias)
    assert not gradient[excluded].any()


def test_low_rank_inputs_with_a_frozen_weight_are_the_core_s():
    case = Case()
    hidden, weight, bias = case.leaves
    generator = torch.Generator().manual_seed(3)
    down, up = (torch.randn(*s, generator=generator).requires_grad_() for s in ((2, H), (V, 2)))
    frozen = weight.detach()
    case.leaves[1] = frozen + up @ down
    expected = case.plain(band=True)
    case.leaves[1] = frozen
    ours = case.fused(band=True, low_rank=(hidden @ down.t(), up), chunk_tokens=6)
    assert_same(case, ours, expected, leaves=[hidden, down, up, bias])


@pytest.mark.parametrize("learns", [0, 1, 2])
def test_frozen_parts_get_no_gradient(learns):
    case = Case()
    for index, leaf in enumerate(case.leaves):
        leaf.requires_grad_(index == learns)
    leaves = [case.leaves[learns]]
    assert_same(case, case.fused(band=True), case.plain(band=True), leaves=leaves)
    case.fused(band=True)[0].total.backward()
    assert [leaf.grad is not None for leaf in case.leaves] == [i == learns for i in range(3)]


def test_only_the_total_has_a_gradient():
    terms, metrics = Case().fused(band=True)
    assert [term.requires_grad for term in terms] == [True, False, False, False, False]
    assert not any(value.requires_grad for value in metrics.values())
    with torch.no_grad():
        assert not Case().fused(band=True)[0].total.requires_grad


@pytest.mark.parametrize("loss_type", ["ppo", "gspo"])
def test_a_batch_without_tokens_has_loss_0(loss_type):
    case = Case()
    case.mask = torch.zeros(B, T, dtype=torch.bool)
    terms, _ = case.fused(band=True, loss_type=loss_type)
    assert terms.total.item() == 0
    terms.total.backward()
    assert not any(leaf.grad.any() for leaf in case.leaves)


@pytest.mark.parametrize("recompute_logits", [False, True])
def test_bf16_weights_sum_in_float32(recompute_logits):
    case = Case()
    halves = [leaf.detach().bfloat16() for leaf in case.leaves]
    case.leaves = [x.float().requires_grad_() for x in halves]
    expected = case.plain(band=True)[0].total
    wanted = torch.autograd.grad(expected, case.leaves)
    case.leaves = [x.requires_grad_() for x in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        how = {"chunk_tokens": 3, "recompute_logits": recompute_logits}
        total = case.fused(band=True, **how)[0].total
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(total, case.leaves), wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, atol=1e-6, rtol=2**-8)


def test_the_functional_gradient_equals_that_of_backward():
    case = Case(torch.float64)
    expected = torch.autograd.grad(case.plain(band=True)[0].total, case.leaves[:2])
    bias = case.leaves[2].detach()

    def loss(hidden, weight):
        case.leaves = [hidden, weight, bias]
        return case.fused(band=True)[0].total

    leaves = [x.detach() for x in case.leaves[:2]]
    for ours, theirs in zip(torch.func.grad(loss, argnums=(0, 1))(*leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_second_backward_pass_and_a_second_derivative_raise():
    case = Case()
    total = case.fused(band=False)[0].total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    total = case.fused(band=False)[0].total
    (gradient,) = torch.autograd.grad(total, case.leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.full((B, T), V)}, ValueError, "labels must be in 0 .. 40 where they"),
        ({"mask": torch.ones(B, T - 1)}, ValueError, r"mask must have shape \(6, 7\), got"),
        ({"old": torch.zeros(T, B)}, ValueError, r"old_logprobs must have shape \(6, 7\)"),
        ({"advantages": torch.zeros(B - 1)}, ValueError, "advantages must have shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, error, message):
    case = Case()
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(error, match=message):
        case.fused(band=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens must be at least 1, got 0"),
        ({"loss_type": "reinforce"}, ValueError, "loss_type must be one of"),
        ({"entropy_high": None}, TypeError, "entropies need tasks, entropy_low and entropy_high"),
    ],
)
def test_options_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Case().fused(band=True, **options)
