"""Policy losses and KL estimates: values, gradients, masks, aggregation."""

from __future__ import annotations

import numpy as np
import pytest

from g2rpo import LOSSES, BatchTotals, policy_loss

LOSS_TYPES = [name for name in LOSSES if name != "dr-grpo"]


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


def test_the_ppo_loss_is_that_of_its_formula(library, tokens):
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
    loose, _ = policy_loss(*arrays, dual_clip=np.inf)
    assert float(loose) > float(policy_loss(*arrays)[0]) + 0.1


def test_metrics_are_shares_and_means_over_tokens(library, tokens):
    logprobs, old, advantages, mask = tokens
    logprobs[0, 0], advantages[0], mask[0, 0] = old[0, 0] + 2, -1.0, True
    _, metrics = policy_loss(*(library.array(x) for x in tokens))
    ratio, a = np.exp(logprobs - old)[mask], np.broadcast_to(advantages[:, None], mask.shape)[mask]
    low, high = np.mean((ratio < 0.8) & (a < 0)), np.mean((ratio > 1.3) & (a > 0))
    expected = {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "clip_ratio/dual_mean": np.mean((ratio > 3) & (a < 0)),
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "kl_old": np.mean(ratio - 1 - np.log(ratio)),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=3e-6), name


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_masked_logprobs_change_neither_value_nor_gradient(tokens, loss_type):
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
def test_masked_advantages_and_weights_change_neither_value_nor_gradient(tokens, loss_type):
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
def test_a_batch_without_tokens_has_loss_0(library, tokens, loss_type):
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


def test_equal_token_advantages_change_nothing_and_ratios_are_clamped(library, tokens):
    logprobs, old, advantages, mask = tokens
    wide = np.broadcast_to(advantages[:, None], logprobs.shape).copy()
    arrays = [library.array(x) for x in (logprobs, old, advantages, mask)]
    by_token = policy_loss(*arrays[:2], library.array(wide), arrays[3])[0]
    assert float(policy_loss(*arrays)[0]) == float(by_token)
    far = library.array(old + 400)
    _, metrics = policy_loss(far, *arrays[1:])
    assert float(metrics["ratio/max"]) == pytest.approx(np.exp(20), rel=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_losses_of_slices_add_up_to_that_of_the_batch(library, tokens, aggregation):
    mask = tokens[3]
    whole, _ = policy_loss(*map(library.array, tokens), aggregation=aggregation)
    counted = mask.sum(), mask.any(1).sum()
    for totals in (
        BatchTotals(*map(int, counted)),
        BatchTotals(*(library.array(np.asarray(float(count))) for count in counted)),
    ):
        parts = [
            policy_loss(
                *(library.array(x[rows]) for x in tokens),
                aggregation=aggregation,
                totals=totals,
            )[0]
            for rows in (slice(0, 2), slice(2, 5))
        ]
        assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_half_precision_gives_float32():
    import torch

    zeros = torch.zeros(2, 3, dtype=torch.bfloat16)
    loss, _ = policy_loss(zeros, zeros, torch.ones(2), torch.ones(2, 3))
    assert loss.dtype == torch.float32
    assert float(loss) == -1


def slope_of(logprobs, *rest, **options):
    """Return the gradient by the log-probabilities, and the loss, on PyTorch."""
    import torch

    leaf = torch.tensor(logprobs, requires_grad=True)
    loss, _ = policy_loss(leaf, *map(torch.tensor, rest), **options)
    loss.backward()
    return leaf.grad.numpy(), loss.item()


@pytest.mark.parametrize(
    ("loss_type", "slopes"),
    [
        ("ppo", (-10 / 110, 100 / 110)),
        ("gspo", (-0.5, 0.5)),
        ("sapo", (-0.5, 0.5)),
        ("grpo", (-0.5, 0.5)),
    ],
)
def test_the_aggregation_decides_how_lengths_weigh(loss_type, slopes):
    """Of 10 and 100 tokens with advantages of 1 and -1, on policy."""
    logprobs, mask = np.full((2, 100), -1.0), np.ones((2, 100), bool)
    mask[0, 10:] = False
    slope, _ = slope_of(logprobs, logprobs, np.asarray([1.0, -1.0]), mask, loss_type=loss_type)
    assert slope.sum(1) == pytest.approx(slopes)


def test_gspo_gives_each_token_the_gradient_of_its_own_advantage(tokens):
    logprobs, _, _, mask = tokens
    advantages = np.linspace(-2, 2, 30).reshape(5, 6)
    slope, _ = slope_of(logprobs, logprobs, advantages, mask, loss_type="gspo")
    weights = mask / np.maximum(mask.sum(1, keepdims=True), 1) / 4
    np.testing.assert_allclose(slope, -advantages * weights, atol=1e-15)


def test_gspo_averages_before_it_clamps(library):
    """Log-ratios of 40 and -30 have a mean of 5, and 300 and -300 one of 0."""
    old, mask = np.full((1, 2), -1.0), np.ones((1, 2), bool)
    for changes, ratio in (
        ((40.0, -30.0), np.exp(5)),
        ((300.0, -300.0), 1.0),
        ((50.0, 9.0), np.exp(20)),
    ):
        given = (old + np.asarray([changes]), old, np.ones(1), mask)
        _, metrics = policy_loss(*map(library.array, given), loss_type="gspo")
        assert float(metrics["ratio/max"]) == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("change", [25.0, 400.0, -25.0])
def test_cispo_has_a_gradient_beyond_the_clamp(change):
    old = np.full((1, 1), -500.0)
    slope, _ = slope_of(old + change, old, np.asarray([-2.0]), np.ones((1, 1)), loss_type="cispo")
    assert slope[0, 0] == pytest.approx(2 * min(5.0, np.exp(max(change, -20))))


def test_cispo_has_a_lower_bound_if_one_is_asked_for():
    old = np.full((1, 2), -2.0)
    given = (old + np.log([[0.1, 0.9]]), old, np.ones(1), np.ones((1, 2)))
    assert slope_of(*given, loss_type="cispo")[0][0] == pytest.approx([-0.05, -0.45])
    assert slope_of(*given, loss_type="cispo", epsilon=0.2)[0][0] == pytest.approx([-0.4, -0.45])


def test_cispo_counts_every_token_whose_weight_was_clipped(library):
    """Of either sign, but not with an advantage of 0; above and below."""
    ratio = np.asarray([[9.0, 1.0], [9.0, 0.5], [9.0, 0.5]])
    old, mask = np.full((3, 2), -3.0), np.ones((3, 2), bool)
    given = (old + np.log(ratio), old, np.asarray([1.0, -1.0, 0.0]), mask)
    arrays = [library.array(x) for x in given]
    shares = {}
    for epsilon in (None, 0.2):
        _, metrics = policy_loss(*arrays, loss_type="cispo", epsilon=epsilon)
        shares[epsilon] = [
            float(metrics[f"clip_ratio/{name}_mean"]) for name in ("low", "high", "region")
        ]
    assert shares[None] == pytest.approx([0, 2 / 6, 2 / 6])
    assert shares[0.2] == pytest.approx([1 / 6, 2 / 6, 3 / 6])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_loss_reports_what_it_clips_and_nothing_else(library, tokens, loss_type):
    _, metrics = policy_loss(*map(library.array, tokens), loss_type=loss_type)
    clips = {"low", "high", "region"} if loss_type != "sapo" else set()
    clips |= {"dual"} if loss_type == "ppo" else set()
    assert set(metrics) - {"kl_old", "ratio/mean", "ratio/max"} == {
        f"clip_ratio/{name}_mean" for name in clips
    }


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_importance_weights_that_are_not_finite_leave_their_tokens_out(tokens, loss_type):
    weights = np.ones((5, 6))
    weights[0, 1], weights[1, 2], weights[2, 3] = np.nan, np.inf, -np.inf
    tokens[3][:3] = True
    import torch

    found = slope_of(*tokens, importance_weights=torch.tensor(weights), loss_type=loss_type)
    usual = np.where(np.isfinite(weights), weights, 0.0)
    wanted = slope_of(*tokens, importance_weights=torch.tensor(usual), loss_type=loss_type)
    assert np.array_equal(found[0], wanted[0])
    assert found[1] == wanted[1]
    assert not found[0][[0, 1, 2], [1, 2, 3]].any()
    assert np.isfinite(found[0]).all()
    assert found[0].any()
