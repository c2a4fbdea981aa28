"""Importance weights of another sampler, and masks of old responses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from g2rpo import off_policy_mask, policy_loss, sampler_weights

LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "mask", "reject")
BOUNDS = [(None, 3.0), (0.5, 2.0), (0.7, None), (None, None)]


def tokens(rng, rows=7, longest=6, spread=0.4):
    """Log-probabilities, those of the sampler, and a mask with an empty response."""
    mask = np.arange(longest) < rng.integers(1, longest + 1, rows)[:, None]
    mask[2] = False
    old = -np.abs(rng.standard_normal((rows, longest)))
    sampler = old + spread * rng.standard_normal((rows, longest))
    return np.where(mask, old, np.nan), np.where(mask, sampler, np.inf), mask


def slow_ratios(old, sampler, mask, level):
    """The ratio that each token has at a level, by loops; None where masked out."""
    rows = []
    for o, s, m in zip(old.tolist(), sampler.tolist(), mask.tolist(), strict=True):
        logs = [a - b for a, b, counts in zip(o, s, m, strict=True) if counts]
        of_response = sum(logs) if level == "sequence" else sum(logs) / max(1, len(logs))
        left = iter(logs)
        rows.append(
            [
                math.exp(next(left) if level == "token" else of_response) if counts else None
                for counts in m
            ]
        )
    return rows


def slow_weight(ratio, mode, low, high):
    low, high = low or -math.inf, high or math.inf
    if ratio is None:
        return 0.0
    if mode == "truncate":
        return min(max(ratio, low), high)
    return (ratio if mode == "mask" else 1.0) if low <= ratio <= high else 0.0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_weights_and_metrics_are_those_of_a_loop(library, rng, level, mode, low, high):
    old, sampler, mask = tokens(rng)
    given = [library.array(x) for x in (old, sampler, mask)]
    weights, metrics = sampler_weights(*given, level=level, mode=mode, low=low, high=high)
    ratios = slow_ratios(old, sampler, mask, level)
    expected = [[slow_weight(ratio, mode, low, high) for ratio in row] for row in ratios]
    np.testing.assert_allclose(library.numpy(weights), expected, rtol=20 * library.tolerance)
    assert str(library.numpy(weights).dtype) == library.dtype

    units = [r for row in ratios for r in row if r is not None]
    if level != "token":
        units = [next(r for r in row if r is not None) for row in ratios if row[0] is not None]
    logs = (old - sampler)[mask]
    wanted = {
        "sampler/ratio/mean": np.mean(units),
        "sampler/ratio/min": min(units),
        "sampler/ratio/max": max(units),
        "sampler/frac_low": np.mean([low is not None and r < low for r in units]),
        "sampler/frac_high": np.mean([high is not None and r > high for r in units]),
        "sampler/frac_masked": np.mean(np.asarray(expected)[mask] == 0),
        "sampler/kl": np.mean(np.exp(logs) - 1 - logs),
    }
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx(wanted, rel=20 * library.tolerance, abs=library.tolerance)


def test_the_defaults_are_those_of_trl_for_vllm(rng):
    """The ratio is the product over the response; the weight is that up to 3, and 0 beyond."""
    old, sampler, mask = tokens(rng, spread=1.0)
    product = np.exp(np.where(mask, old - sampler, 0.0).sum(1))
    expected = np.where(product <= 3, product, 0.0)[:, None] * mask
    weights, _ = sampler_weights(old, sampler, mask)
    assert 0 < (expected == 0)[mask].sum() < mask.sum()
    np.testing.assert_allclose(weights, expected)


def test_a_ratio_on_a_bound_is_inside():
    old, ones = np.log([[2.0, 0.5]]), np.ones((1, 2), dtype=bool)
    for mode in MODES:
        options = {"level": "token", "mode": mode, "low": float(np.exp(old[0, 1])), "high": 3.0}
        options["high"] = float(np.exp(old[0, 0]))
        weights, metrics = sampler_weights(old, np.zeros((1, 2)), ones, **options)
        assert (weights > 0).all()
        assert metrics["sampler/frac_low"] == metrics["sampler/frac_high"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_1_where_sampler_and_policy_agree(library, rng, mode):
    old, _, mask = tokens(rng)
    given = [library.array(x) for x in (old, old, mask)]
    for level in LEVELS:
        weights, metrics = sampler_weights(*given, level=level, mode=mode)
        assert np.array_equal(library.numpy(weights), mask)
        assert float(metrics["sampler/kl"]) == float(metrics["sampler/frac_masked"]) == 0
        assert all(float(metrics[f"sampler/ratio/{name}"]) == 1 for name in ("mean", "min", "max"))


@pytest.mark.parametrize("level", LEVELS)
def test_weights_of_unbounded_tokens_are_unbiased(level):
    """Over all responses of two tokens, the weighted mean under the sampler is the policy's."""
    policy, sampler = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.2, 0.5, 0.3])
    first, second = (x.ravel() for x in np.meshgrid(range(3), range(3), indexing="ij"))
    responses = np.stack([first, second], axis=1)
    logs = [np.log(p)[responses] for p in (policy, sampler)]
    mask = np.ones(responses.shape, dtype=bool)
    weights, metrics = sampler_weights(*logs, mask, level=level, low=None, high=None)
    chance = sampler[responses].prod(axis=1)
    values = responses[:, 0] + 10.0 * responses[:, 1]
    exact = (policy[responses].prod(axis=1) * values).sum()
    is_exact = np.isclose((chance * weights[:, 0] * values).sum(), exact)
    assert is_exact == (level == "sequence")
    assert metrics["sampler/kl"] > 0


def test_extreme_and_unknown_ratios_stay_finite(library):
    inf, nan = np.inf, np.nan
    old = library.array([[-1.0, -inf], [-1.0, -1.0], [-1.0, -1.0], [-400.0, -1.0]])
    sampler = library.array([[-1.0, -1.0], [-inf, -1.0], [nan, -1.0], [-1.0, -1.0]])
    mask = library.array(np.ones((4, 2), dtype=bool))
    largest = math.exp(20)
    for level, expected in {
        "token": [[1, 1 / largest], [5, 1], [0, 1], [1 / largest, 1]],
        "sequence": [[1 / largest] * 2, [5, 5], [0, 0], [1 / largest] * 2],
    }.items():
        weights, metrics = sampler_weights(
            old, sampler, mask, level=level, mode="truncate", high=5.0
        )
        np.testing.assert_allclose(library.numpy(weights), expected, rtol=1e-5)
        assert all(np.isfinite(float(value)) for value in metrics.values())
        masked = float(metrics["sampler/frac_masked"])
        assert masked == pytest.approx(1 / 8 if level == "token" else 1 / 4)


def test_a_batch_without_tokens_has_weights_of_0(library):
    for shape in ((0, 3), (2, 3), (2, 0)):
        nothing = library.array(np.full(shape, np.nan))
        mask = library.array(np.zeros(shape, dtype=bool))
        for level in LEVELS:
            weights, metrics = sampler_weights(nothing, nothing, mask, level=level)
            assert library.numpy(weights).shape == shape
            assert not library.numpy(weights).any()
            assert all(float(value) == 0 for value in metrics.values())


def test_half_precision_gives_weights_in_float32():
    import torch

    old = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16, requires_grad=True)
    sampler = torch.tensor([[-1.0, -2.25]])
    weights, _ = sampler_weights(old, sampler, torch.ones(1, 2), level="token")
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert float(weights[0, 1]) == pytest.approx(math.exp(0.25))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.0, 3.0, "low must be finite and positive, got 0.0"),
        (None, math.inf, "high must be finite and positive, got inf"),
        (2.0, 2.0, "low must be below high, got 2.0 and 2.0"),
    ],
)
def test_bounds_that_are_not_positive_and_ascending_are_refused(low, high, message):
    old, mask = np.zeros((1, 2)), np.ones((1, 2))
    with pytest.raises(ValueError, match=message):
        sampler_weights(old, old, mask, low=low, high=high)


def slow_keeps(new, sampler, advantages, mask, threshold):
    keeps = np.zeros_like(mask)
    for i, j in zip(*mask.nonzero(), strict=True):
        gap = np.mean((sampler - new)[i][mask[i]])
        advantage = advantages[i] if advantages.ndim == 1 else advantages[i, j]
        keeps[i, j] = advantage >= 0 or gap <= threshold
    return keeps


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("threshold", [1e-6, 0.1, 0.4, 9.0])
def test_only_old_responses_of_negative_advantage_are_masked(library, rng, by_token, threshold):
    new, sampler, mask = tokens(rng, rows=40, spread=1.0)
    advantages = np.round(rng.standard_normal(mask.shape if by_token else 40))
    expected = slow_keeps(new, sampler, advantages, mask, threshold)
    given = [library.array(x) for x in (new, sampler, advantages, mask)]
    found = library.numpy(off_policy_mask(*given, threshold=threshold))
    assert np.array_equal(found, expected)
    assert found.dtype == bool
    assert (expected == mask).all() == (threshold == 9.0)


def test_what_is_masked_has_no_gradient_and_stays_in_the_mean():
    import torch

    old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    now = torch.tensor([[-2.0, -2.0], [-1.2, -1.1]], requires_grad=True)
    advantages, mask = torch.tensor([-1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool)
    keeps = off_policy_mask(now, old, advantages, mask, threshold=0.5)
    assert keeps.tolist() == [[False, False], [True, True]]
    loss, _ = policy_loss(now, old, advantages, mask, importance_weights=keeps.float())
    loss.backward()
    assert not now.grad[0].any()
    plain = torch.tensor([[-1.2, -1.1]], requires_grad=True)
    alone, _ = policy_loss(plain, old[1:], advantages[1:], mask[1:])
    alone.backward()
    torch.testing.assert_close(now.grad[1:], plain.grad / 2)


def test_an_unknown_distance_masks_a_negative_advantage_only(library):
    new, old = library.array([[np.nan], [np.nan], [-np.inf]]), library.array(np.zeros((3, 1)))
    advantages = library.array([-1.0, 1.0, -1.0])
    mask = library.array(np.ones((3, 1), dtype=bool))
    found = off_policy_mask(new, old, advantages, mask, threshold=1.0)
    assert library.numpy(found).tolist() == [[False], [True], [False]]
