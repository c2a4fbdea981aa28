"""Adaptive entropy weights: they grow outside the bounds and shrink inside."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo import adapt_entropy_weights, entropy_from_logits, entropy_penalty

LOW, HIGH = np.asarray([0.2, 0.2, 0.2, 0.2]), np.asarray([0.6, 0.6, 0.6, np.inf])


def test_weights_rise_outside_of_the_bounds_and_fall_inside(library):
    weights = library.array([0.5, 0.5, 0.5, 0.5])
    entropy = np.asarray([0.1, 0.5, 1.6, 90.0])
    arrays = [library.array(x) for x in (entropy, LOW, HIGH)]
    got = adapt_entropy_weights(weights, *arrays, learning_rate=0.1)
    np.testing.assert_allclose(library.numpy(got), [0.51, 0.49, 0.6, 0], atol=1e-6)
    present = library.array(np.asarray([True, False, False, True]))
    got = adapt_entropy_weights(weights, *arrays, present, minimum=0.3, maximum=0.505)
    np.testing.assert_allclose(library.numpy(got), [0.502, 0.5, 0.5, 0.3], atol=1e-6)


def test_adapted_weights_keep_a_policy_within_its_bounds():
    """A constant gradient towards low entropy, too large for the usual fixed weight."""
    import torch

    low, high = torch.tensor([0.6]), torch.tensor([1.0])

    def train(adaptive):
        logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
        weights = torch.tensor([0.02])
        for _ in range(600):
            entropy = entropy_from_logits(logits)
            loss = -0.3 * torch.softmax(logits, -1)[0, 0]
            loss = loss + (weights * entropy_penalty(entropy, low, high)).sum()
            (gradient,) = torch.autograd.grad(loss, logits)
            with torch.no_grad():
                logits -= 0.5 * gradient
            if adaptive:
                weights = adapt_entropy_weights(
                    weights, entropy.detach(), low, high, learning_rate=0.05, maximum=5.0
                )
        return entropy_from_logits(logits).item()

    assert train(adaptive=False) < 0.2
    assert 0.55 < train(adaptive=True) < 1.0


def test_options_out_of_range_are_refused():
    weights, one = np.zeros(1), np.ones(1)
    with pytest.raises(ValueError, match=r"minimum must not exceed maximum, got 2\.0 and 1\.0"):
        adapt_entropy_weights(weights, one, one, one, minimum=2.0)
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\), got \(1,\)"):
        adapt_entropy_weights(weights, np.ones(2), np.ones(2), np.ones(2))
