"""The KL estimators by their expectation: an exact sum over a small vocabulary."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from g2rpo import LossOptions, g2rpo_loss, kl_penalty
from g2rpo._kl import KLKind

KINDS = get_args(KLKind)
LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1, -0.4], dtype=torch.float64)
REF = torch.tensor([-0.5, 0.4, 0.2, 1.0, -1.2], dtype=torch.float64).log_softmax(-1)
OTHER = torch.tensor([0.9, 0.2, -0.7, 0.5, 0.0], dtype=torch.float64).log_softmax(-1)


def exact(logits, forward=True):
    """Return KL(policy || reference), or of the reverse direction, and its gradient by logits."""
    leaf = logits.clone().requires_grad_()
    new = leaf.log_softmax(-1)
    value = (new.exp() * (new - REF)).sum() if forward else (REF.exp() * (REF - new)).sum()
    return value.item(), torch.autograd.grad(value, leaf)[0]


def expected(kind, old=None):
    """Return the mean value and gradient of the estimate over tokens that ``old`` samples."""
    leaf = LOGITS.clone().requires_grad_()
    new = leaf.log_softmax(-1)
    sampler = new.detach() if old is None else old
    options = {"old_logprobs": old} if kind == "k3-weighted" and old is not None else {}
    mean = (sampler.exp() * kl_penalty(new, REF, kind=kind, **options)).sum()
    return mean.item(), torch.autograd.grad(mean, leaf)[0]


def close(found, wanted):
    return torch.allclose(found, wanted, atol=1e-14, rtol=0)


def test_expected_gradients_on_policy_are_those_of_the_table():
    forward, backward = exact(LOGITS)[1], exact(LOGITS, forward=False)[1]
    zero = torch.zeros_like(forward)
    wanted = dict.fromkeys(KINDS, forward) | {"k1": zero, "k3": backward}
    assert {kind: close(expected(kind)[1], wanted[kind]) for kind in KINDS} == dict.fromkeys(
        KINDS, True
    )
    assert (forward - backward).abs().max() > 0.05


def test_expected_values_on_policy_are_those_of_the_table():
    value, _ = exact(LOGITS)
    unbiased = {kind for kind in KINDS if expected(kind)[0] == pytest.approx(value, abs=1e-14)}
    assert unbiased == {"k1", "k3", "k1+", "k3+", "k3-weighted"}


def test_off_policy_only_the_weighted_form_is_unbiased_and_it_is_the_default():
    value, gradient = exact(LOGITS)
    found = {kind: expected(kind, OTHER) for kind in KINDS}
    right = {kind for kind, (_, slope) in found.items() if close(slope, gradient)}
    assert right == {"k3-weighted"} == {LossOptions().kl_kind}
    assert found["k3-weighted"][0] == pytest.approx(value, abs=1e-14)


def test_on_policy_the_gradients_of_k2_and_of_the_weighted_form_are_the_same_token_by_token():
    new = torch.linspace(-3, -0.1, 7, dtype=torch.float64, requires_grad=True)
    ref = torch.full_like(new, -1.0)
    found = [
        torch.autograd.grad(kl_penalty(new, ref, kind=kind).sum(), new)[0]
        for kind in ("k2", "k3+", "k3-weighted")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_values_of_all_kinds_follow_their_formulas(library, rng):
    new, ref, old = rng.standard_normal((3, 3, 4))
    d, k3 = new - ref, np.exp(ref - new) + new - ref - 1
    wanted = {"k1": d, "k1+": d, "k2": d * d / 2, "k3": k3, "k3+": k3}
    for kind, values in wanted.items():
        found = library.call(kl_penalty, new, ref, kind=kind)
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=library.tolerance)
    found = kl_penalty(*map(library.array, (new, ref)), old_logprobs=library.array(old))
    wanted = np.exp(new - old) * k3
    np.testing.assert_allclose(library.numpy(found), wanted, rtol=1e-5, atol=library.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_not_0_beyond_the_clamp(kind):
    new = torch.tensor([-30.0, -0.1], requires_grad=True)
    ref = torch.tensor([-0.1, -60.0])
    (slope,) = torch.autograd.grad(kl_penalty(new, ref, kind=kind).sum(), new)
    assert torch.isfinite(slope).all()
    assert slope[1] > 0
    assert slope[0] > 0 if kind == "k1" else slope[0] < 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_a_policy_excludes_leaves_value_and_gradient_finite(kind):
    pairs = [(-np.inf, -1.0), (-1.0, -np.inf)]
    new = torch.tensor([a for a, _ in pairs], requires_grad=True)
    values = kl_penalty(new, torch.tensor([b for _, b in pairs]), kind=kind)
    (slope,) = torch.autograd.grad(values.sum(), new)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_metric_is_the_unbiased_estimate_whatever_the_kind(library, rng, kind):
    new, old, ref = -np.abs(rng.standard_normal((3, 4, 5)))
    mask = rng.random((4, 5)) < 0.7
    arrays = [library.array(x) for x in (new, old, np.ones(4), mask)]
    _, metrics = g2rpo_loss(*arrays, ref_logprobs=library.array(ref), beta=0.1, kl_kind=kind)
    wanted = (np.exp(new - old) * (np.exp(ref - new) + new - ref - 1))[mask].mean()
    assert float(metrics["kl"]) == pytest.approx(wanted, rel=1e-4)
    assert float(metrics["kl"]) >= 0


def test_old_logprobs_go_with_the_weighted_form_alone():
    one = np.zeros(2)
    with pytest.raises(TypeError, match="old_logprobs go with kind='k3-weighted', not 'k3'"):
        kl_penalty(one, one, kind="k3", old_logprobs=one)
