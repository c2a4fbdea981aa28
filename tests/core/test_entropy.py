"""Exact entropies, task means and the penalty outside of the entropy bounds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from g2rpo import (
    EntropyBounds,
    entropy_from_logits,
    entropy_from_probs,
    entropy_penalty,
    task_means,
)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def logits_batch(rng):
    logits = 4 * rng.standard_normal((3, 5, 11))
    logits[0, 0, :4] = -np.inf
    logits[1, 1, 1:] = -np.inf
    logits[2, 2] = 300 * logits[2, 2]
    return logits


def test_entropies_of_logits_and_probabilities_are_those_of_scipy(library, rng):
    logits = logits_batch(rng).astype(library.dtype)
    expected = scipy.stats.entropy(softmax(logits.astype(float)), axis=-1)
    got = library.call(entropy_from_logits, logits)
    assert got.dtype == library.dtype
    np.testing.assert_allclose(got, expected, atol=5 * library.tolerance)
    got = library.call(entropy_from_probs, softmax(logits.astype(float)))
    np.testing.assert_allclose(got, expected, atol=5 * library.tolerance)


def test_a_row_of_minus_infinity_has_entropy_0(library):
    assert library.call(entropy_from_logits, np.full((1, 3), -np.inf)).tolist() == [0]


def test_the_gradient_is_exact_where_logits_are_minus_infinity(rng):
    import jax
    import torch

    logits = logits_batch(rng)
    given = torch.tensor(logits, requires_grad=True)
    entropy_from_logits(given).sum().backward()
    probs = softmax(logits)
    logp = np.log(np.where(probs > 0, probs, 1))
    entropy = -(probs * logp).sum(-1, keepdims=True)
    np.testing.assert_allclose(given.grad, -probs * (logp + entropy), atol=1e-12)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda x: entropy_from_logits(x).sum())(jax.numpy.asarray(logits))
    np.testing.assert_allclose(gradient, given.grad, atol=1e-12)


def test_task_means_leave_out_masked_tokens_and_other_labels(library, rng):
    values, mask = rng.random((6, 4)), rng.random((6, 4)) < 0.6
    tasks = np.asarray([0, 2, 0, 3, -1, 7])
    mask[3] = False
    means, present = task_means(
        library.array(np.where(mask, values, np.nan)), library.array(mask), library.array(tasks), 4
    )
    expected = [values[tasks == t][mask[tasks == t]] for t in range(4)]
    np.testing.assert_allclose(
        library.numpy(means), [v.mean() if v.size else 0 for v in expected], rtol=1e-6
    )
    assert library.numpy(present).tolist() == [True, False, True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_changes_its_own_task_only(library, bad):
    arrays = [library.array(np.asarray(x)) for x in ([[1.0], [bad]], [[True], [True]], [0, 1])]
    means = library.numpy(task_means(*arrays, 3)[0])
    assert means[0] == 1
    assert not np.isfinite(means[1])
    assert means[2] == 0


def test_the_penalty_grows_outside_of_the_bounds_on_either_side(library):
    low, high = np.full(4, 0.2), np.asarray([0.6, 0.6, 0.6, np.inf])
    entropy = np.asarray([0.1, 0.4, 0.9, 50.0])
    assert library.call(entropy_penalty, entropy, low, high) == pytest.approx(0.4, abs=1e-6)
    present = library.array(np.asarray([True, True, False, True]))
    got = library.call(entropy_penalty, entropy, low, high, present=present)
    assert got == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("bounds", [(-0.1, 1), (2, 1), (np.nan, 1), (0, np.nan), (np.inf, np.inf)])
def test_unordered_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="entropy bounds must have 0 <= low <= high"):
        EntropyBounds(*bounds)


def test_the_naive_penalty_lowers_the_entropy_everywhere():
    """max(H, low) + min(H, high) has slope +1, +2 (or 0) and +1, so descent always lowers H."""
    import torch

    low, high = torch.tensor([0.2]), torch.tensor([0.6])
    naive, hinge = [], []
    for value in (0.1, 0.4, 0.9):
        h = torch.tensor([value], requires_grad=True)
        (torch.maximum(h, low) + torch.minimum(h, high)).backward()
        naive.append(h.grad.item())
        h = torch.tensor([value], requires_grad=True)
        entropy_penalty(h, low, high).backward()
        hinge.append(h.grad.item())
    assert naive == [1, 2, 1]
    assert hinge == [-1, 0, 1]


def test_the_sampled_surprise_has_no_expected_gradient(rng):
    """On policy, the expected gradient of the mean of -log p is zero; the entropy's is not."""
    import torch

    logits = torch.tensor(rng.standard_normal(7), requires_grad=True)
    logp = torch.log_softmax(logits, dim=-1)
    expectation = torch.zeros(7, dtype=torch.float64)
    for token in range(7):
        (gradient,) = torch.autograd.grad(-logp[token], logits, retain_graph=True)
        expectation += logp[token].exp().detach() * gradient
    assert expectation.abs().max() < 1e-15
    (exact,) = torch.autograd.grad(entropy_from_logits(logits), logits)
    assert exact.abs().max() > 0.05
