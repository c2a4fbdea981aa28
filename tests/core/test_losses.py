"""Policy losses and KL estimates: values, gradients, masks, aggregation."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo import kl_penalty, policy_loss

LOSS_TYPES = ["ppo", "gspo", "cispo", "sapo"]


@pytest.fixture
def tokens(rng):
    logprobs = -np.abs(rng.standard_normal((5, 6)))
    old = logprobs + 0.4 * rng.standard_normal((5, 6))
    mask = rng.random((5, 6)) < 0.7
    mask[3] = False
    return logprobs, old, rng.standard_normal(5) * 2, mask


def ppo_tokens(logprobs, old, advantages, low=0.2, high=0.3, dual=3.0):
    ratio, a = np.exp(np.clip(logprobs - old, -20, 20)), advantages[:, None]
    loss = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - low, 1 + high))
    return np.where(a < 0, np.minimum(loss, -a * dual), loss)


def test_ppo_by_hand(library, tokens):
    logprobs, old, advantages, mask = tokens
    old[0, 0], advantages[0], mask[0, 0] = logprobs[0, 0] - 3, -2.0, True
    each = ppo_tokens(*(x.astype(library.dtype) for x in (logprobs, old, advantages)))
    arrays = [library.array(x) for x in (logprobs, old, advantages, mask)]
    lengths, rows = mask.sum(1), [0, 1, 2, 4]
    expected = {
        "token": each[mask].sum() / mask.sum(),
        "sequence": np.mean([each[i][mask[i]].sum() / lengths[i] for i in rows]),
        "constant": each[mask].sum() / (len(rows) * 10),
    }
    for aggregation, value in expected.items():
        limit = 10 if aggregation == "constant" else None
        loss, _ = policy_loss(*arrays, aggregation=aggregation, max_completion_length=limit)
        assert loss.shape == ()
        assert library.numpy(loss) == pytest.approx(value, rel=3e-6)
    loose, _ = policy_loss(*arrays, dual_clip=None)
    assert float(loose) > float(policy_loss(*arrays)[0]) + 0.1


def test_metrics(library, tokens):
    logprobs, old, advantages, mask = tokens
    _, metrics = policy_loss(*(library.array(x) for x in tokens))
    ratio, a = np.exp(logprobs - old)[mask], np.broadcast_to(advantages[:, None], mask.shape)[mask]
    low, high = np.mean((ratio < 0.8) & (a < 0)), np.mean((ratio > 1.3) & (a > 0))
    expected = {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "kl/old": np.mean(ratio - 1 - np.log(ratio)),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=3e-6), name


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_masked_garbage_reaches_nothing(tokens, loss_type):
    import jax
    import torch

    logprobs, old, advantages, mask = tokens
    for garbage in (np.nan, np.inf, -np.inf):
        dirty = [np.where(mask, x, garbage) for x in (logprobs, old)]
        grads, values = [], []
        for pair in ((logprobs, old), dirty):
            lp = torch.tensor(pair[0], requires_grad=True)
            loss, metrics = policy_loss(
                lp, *map(torch.tensor, (pair[1], advantages, mask)), loss_type=loss_type
            )
            loss.backward()
            grads.append(lp.grad.numpy())
            values.append([loss.item(), *(m.item() for m in metrics.values())])
        assert values[0] == values[1]
        assert np.array_equal(grads[0], grads[1])
        assert np.array_equal(grads[1][~mask], np.zeros((~mask).sum()))
        with jax.enable_x64(True):
            arrays = [jax.numpy.asarray(x) for x in (*dirty, advantages, mask)]
            gradient = jax.grad(lambda *a: policy_loss(*a, loss_type=loss_type)[0])(*arrays)
        np.testing.assert_allclose(gradient, grads[0], atol=1e-14)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_masked_advantages_and_weights_reach_nothing(tokens, loss_type):
    import torch

    logprobs, old, advantages, mask = tokens
    wide = np.where(mask, advantages[:, None], np.nan)
    weights = np.where(mask, 1.0, np.inf)
    gradients = []
    for given, factors in ((advantages, None), (wide, torch.tensor(weights))):
        lp = torch.tensor(logprobs, requires_grad=True)
        rest = [torch.tensor(x) for x in (old, given, mask)]
        loss, _ = policy_loss(lp, *rest, loss_type=loss_type, importance_weights=factors)
        loss.backward()
        gradients.append([loss.item(), *lp.grad.flatten().tolist()])
    assert gradients[0] == gradients[1]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_all_masked_is_zero(library, tokens, loss_type):
    logprobs, old, advantages, _ = tokens
    for shape in ((5, 6), (5, 0), (0, 6)):
        arrays = [np.resize(x, shape) for x in (logprobs, old)]
        arrays += [np.resize(advantages, shape[0]), np.zeros(shape, bool)]
        for aggregation in ("token", "sequence"):
            loss, metrics = policy_loss(
                *map(library.array, arrays), loss_type=loss_type, aggregation=aggregation
            )
            assert float(loss) == 0
            assert all(float(m) == 0 for m in metrics.values())


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_by_finite_differences(tokens, loss_type, aggregation):
    import torch

    logprobs, old, advantages, mask = tokens
    weights = np.exp(np.linspace(-1, 1.5, 30).reshape(5, 6))
    limit = 9 if aggregation == "constant" else None

    def loss_of(lp):
        # CISPO's weight is a constant to its gradient: differentiate with the weight held.
        return policy_loss(
            lp,
            *map(torch.tensor, (old, advantages, mask)),
            loss_type=loss_type,
            aggregation=aggregation,
            max_completion_length=limit,
            importance_weights=torch.tensor(weights),
            importance_cap=1.5,
        )[0]

    lp = torch.tensor(logprobs, requires_grad=True)
    loss_of(lp).backward()
    step = 1e-6
    if loss_type == "cispo":
        ratio = np.minimum(np.exp(logprobs - old), 1.3)
        divisor = {
            "token": mask.sum(),
            "sequence": 4 * np.maximum(mask.sum(1, keepdims=True), 1),
            "constant": 4 * 9,
        }[aggregation]
        expected = -advantages[:, None] * ratio * np.minimum(weights, 1.5) * mask / divisor
    else:
        expected = np.zeros_like(logprobs)
        for index in np.ndindex(*logprobs.shape):
            up, down = logprobs.copy(), logprobs.copy()
            up[index] += step
            down[index] -= step
            difference = loss_of(torch.tensor(up)) - loss_of(torch.tensor(down))
            expected[index] = float(difference) / (2 * step)
    np.testing.assert_allclose(lp.grad, expected, atol=2e-9)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_every_loss_is_the_policy_gradient(tokens, loss_type):
    import torch

    logprobs, _, advantages, mask = tokens
    lp = torch.tensor(logprobs, requires_grad=True)
    loss, metrics = policy_loss(
        lp,
        torch.tensor(logprobs),
        torch.tensor(advantages),
        torch.tensor(mask),
        loss_type=loss_type,
        aggregation="sequence",
    )
    loss.backward()
    weights = mask / np.maximum(mask.sum(1, keepdims=True), 1) / 4
    np.testing.assert_allclose(lp.grad, -advantages[:, None] * weights, atol=1e-15)
    assert metrics["ratio/mean"].item() == pytest.approx(1, abs=1e-15)


def test_token_advantages_and_wide_ratios(library, tokens):
    logprobs, old, advantages, mask = tokens
    wide = np.broadcast_to(advantages[:, None], logprobs.shape).copy()
    arrays = [library.array(x) for x in (logprobs, old, advantages, mask)]
    by_token = policy_loss(*arrays[:2], library.array(wide), arrays[3])[0]
    assert float(policy_loss(*arrays)[0]) == float(by_token)
    far = library.array(old + 400)
    _, metrics = policy_loss(far, *arrays[1:])
    assert float(metrics["ratio/max"]) == pytest.approx(np.exp(20), rel=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_slices_add_up(library, tokens, aggregation):
    mask = tokens[3]
    whole, _ = policy_loss(*map(library.array, tokens), aggregation=aggregation)
    denominator = mask.sum() if aggregation == "token" else mask.any(1).sum()
    for given in (int(denominator), library.array(np.asarray(float(denominator)))):
        parts = [
            policy_loss(
                *(library.array(x[rows]) for x in tokens),
                aggregation=aggregation,
                denominator=given,
            )[0]
            for rows in (slice(0, 2), slice(2, 5))
        ]
        assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_kl_estimators(library, rng):
    logprobs, ref = rng.standard_normal((2, 3, 4))
    d = logprobs - ref
    for kind, expected in (("k1", d), ("k2", d * d / 2), ("k3", np.exp(-d) + d - 1)):
        got = library.call(kl_penalty, logprobs, ref, kind=kind)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=library.tolerance)


def test_half_precision_answers_in_single():
    import torch

    zeros = torch.zeros(2, 3, dtype=torch.bfloat16)
    loss, _ = policy_loss(zeros, zeros, torch.ones(2), torch.ones(2, 3))
    assert loss.dtype == torch.float32
    assert float(loss) == -1
