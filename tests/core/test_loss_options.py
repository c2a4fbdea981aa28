"""The options of the loss, and registered losses."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from array_api_compat import array_namespace

from g2rpo import LOSSES, LossOptions, g2rpo_loss, policy_loss, register_loss


@pytest.fixture
def tokens(rng):
    old = -np.abs(rng.standard_normal((4, 5))) - 0.1
    new = old + 0.5 * rng.standard_normal((4, 5))
    return new, old, rng.standard_normal(4), rng.random((4, 5)) < 0.8


@pytest.fixture
def own():
    """A loss that caps the ratio above, for good responses only."""

    def one_sided(ratio, logprobs, advantages, *, epsilon_high):
        xp = array_namespace(ratio)
        capped = xp.clip(ratio, None, 1.0 + epsilon_high)
        return xp.where(advantages > 0, -advantages * capped, -advantages * ratio)

    register_loss(
        "one-sided",
        one_sided,
        aggregation="sequence",
        clipping=lambda ratio, advantages, epsilon_high: {
            "high": (ratio > 1 + epsilon_high) & (advantages > 0)
        },
        epsilon_high=0.25,
    )
    yield "one-sided"
    del LOSSES["one-sided"]


def test_options_and_keywords_are_the_same(library, tokens):
    arrays = [library.array(x) for x in tokens]
    options = LossOptions("dapo", epsilon=0.05, aggregation="sequence")
    both = [
        policy_loss(*arrays, options=options),
        policy_loss(*arrays, loss_type="dapo", epsilon=0.05, aggregation="sequence"),
        policy_loss(*arrays, options=replace(options, epsilon=0.5), epsilon=0.05),
        policy_loss(*arrays, options=options.resolved()),
    ]
    assert len({float(loss) for loss, _ in both}) == 1
    assert float(both[0][0]) != float(policy_loss(*arrays, loss_type="dapo")[0])


@pytest.mark.parametrize("loss_type", [name for name in LOSSES if name != "dr-grpo"])
def test_a_given_number_replaces_the_default_of_its_loss_type(loss_type):
    plain = LossOptions(loss_type).resolved()
    for name, default in LOSSES[loss_type].defaults.items():
        changed = LossOptions(loss_type, **{name: 1.25}).resolved()
        assert getattr(plain, name) == default
        assert changed == replace(plain, **{name: 1.25})
    assert plain.resolved() == plain


def test_another_loss_type_brings_its_own_defaults():
    options = replace(LossOptions("ppo"), loss_type="gspo")
    assert options.resolved().epsilon == 3e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dr_grpo"}, "loss_type must be one of"),
        ({"epsilon": np.nan}, "epsilon must be finite and non-negative, got nan"),
        ({"epsilon_high": -1.0}, "epsilon_high must be finite and non-negative"),
        ({"dual_clip": np.nan}, "dual_clip must be at least 1, got nan"),
        ({"loss_type": "sapo", "temperature_positive": 0.0}, "must be finite and positive"),
        ({"aggregation": "constant", "max_completion_length": 0}, "finite and positive"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LossOptions(**options)


def test_a_registered_loss_uses_its_defaults(library, tokens, own):
    arrays = [library.array(x) for x in tokens]
    new, old, advantages, mask = tokens
    ratio, a = np.exp(new - old), advantages[:, None]
    for epsilon in (None, 0.6):
        losses = -a * np.where(a > 0, np.minimum(ratio, 1 + (epsilon or 0.25)), ratio)
        expected = np.mean([row[counts].mean() for row, counts in zip(losses, mask, strict=True)])
        loss, metrics = policy_loss(*arrays, loss_type=own, epsilon_high=epsilon)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        clipped = ((ratio > 1 + (epsilon or 0.25)) & (a > 0))[mask].mean()
        assert float(metrics["clip_ratio/high_mean"]) == pytest.approx(clipped)
        terms, _ = g2rpo_loss(*arrays, loss_type=own, epsilon_high=epsilon)
        assert float(terms.policy) == float(loss)
    with pytest.raises(TypeError, match="takes epsilon_high and no epsilon"):
        policy_loss(*arrays, loss_type=own, epsilon=0.1)


def test_a_registered_loss_compiles(tokens, own):
    import jax
    import torch

    arrays = [jax.numpy.asarray(x, dtype=None if x.dtype == bool else "float32") for x in tokens]

    def loss(logprobs, *rest):
        return policy_loss(logprobs, *rest, loss_type=own)[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(*arrays)
    leaf = torch.tensor(tokens[0], requires_grad=True)
    of_torch = loss(leaf, *map(torch.tensor, tokens[1:]))
    of_torch.backward()
    assert float(value) == pytest.approx(of_torch.item(), rel=1e-5)
    np.testing.assert_allclose(slope, leaf.grad, atol=1e-6)


def test_masked_values_do_not_reach_a_registered_loss(tokens, own):
    new, old, advantages, mask = tokens
    dirty = [np.where(mask, x, np.nan) for x in (new, old)]
    found = policy_loss(*dirty, advantages, mask, loss_type=own)[0]
    assert found == policy_loss(new, old, advantages, mask, loss_type=own)[0]


def test_a_registered_loss_may_take_the_ratio_of_the_response(tokens):
    new, old, advantages, mask = tokens
    seen = []

    @register_loss("watching", ratio="response")
    def watching(ratio, logprobs, advantages):
        seen.append((ratio, logprobs, advantages))
        return -advantages * ratio

    try:
        policy_loss(*tokens, loss_type="watching")
        assert LossOptions("watching").needs_whole_responses
        assert LOSSES["watching"].surrogate is watching
    finally:
        del LOSSES["watching"]
    ratio, logprobs, advantages = seen[0]
    for row, counts in enumerate(mask):
        mean = np.exp((new - old)[row][counts].mean())
        np.testing.assert_allclose(ratio[row][counts], mean)
    assert np.array_equal(logprobs, np.where(mask, new, 0.0))
    assert np.array_equal(advantages, np.where(mask, tokens[2][:, None], 0.0))
    assert (ratio[~mask] == 1).all()


def test_wrong_registrations_are_refused(own):
    with pytest.raises(ValueError, match="a loss is called 'ppo' already"):
        register_loss("ppo", len)
    with pytest.raises(ValueError, match="non-empty"):
        register_loss("", len)
    with pytest.raises(TypeError, match="surrogate must be callable, got int"):
        register_loss("new", 3)
    with pytest.raises(TypeError, match="clipping must be callable, got str"):
        register_loss("new", len, clipping="high")
    with pytest.raises(TypeError, match=r"defaults must be among epsilon, .*, got alpha"):
        register_loss("new", len, alpha=0.1)
    with pytest.raises(ValueError, match="aggregation must be one of"):
        register_loss("new", len, aggregation="mean")
    assert "new" not in LOSSES
    register_loss(own, len, overwrite=True)
    assert LOSSES[own].surrogate is len


def test_a_loss_of_a_wrong_shape_is_refused(tokens):
    register_loss("summing", lambda ratio, *_: (-ratio).sum())
    try:
        with pytest.raises(
            ValueError, match=r"what loss 'summing' returns must have shape \(4, 5\)"
        ):
            policy_loss(*tokens, loss_type="summing")
    finally:
        del LOSSES["summing"]


def test_every_number_of_a_loss_is_an_option():
    names = {field.name for field in fields(LossOptions)}
    assert all(set(loss.defaults) <= names for loss in LOSSES.values())
