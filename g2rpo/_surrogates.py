"""Token losses of the policy, and the tokens that each of them clips.

A loss takes the ratio (B, T) of new to old policy and the log-probabilities of the new one, both
differentiable and finite where masked out, constant advantages (B, T), and its numbers; it returns
what to minimise. At a ratio of 1 every one of them has the policy gradient -A grad log pi.
"""

from __future__ import annotations

import math

from g2rpo._checks import namespace_of
from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array


def clipped(
    ratio: Array,
    logprobs: Array,
    advantages: Array,
    *,
    epsilon: float,
    epsilon_high: float,
    dual_clip: float,
) -> Array:
    """PPO's pessimistic clipped surrogate, with its dual clip for negative advantages."""
    xp = namespace_of(ratio=ratio)
    bounded = xp.clip(ratio, 1.0 - epsilon, 1.0 + epsilon_high)
    loss = xp.maximum(-advantages * ratio, -advantages * bounded)
    if math.isinf(dual_clip):
        return loss
    # Without a ceiling a bad token that became likely would push without limit.
    ceiling = -advantages * dual_clip
    return xp.where((advantages < 0) & (loss > ceiling), ceiling, loss)


def clipped_tokens(
    ratio: Array, advantages: Array, *, epsilon: float, epsilon_high: float, dual_clip: float
) -> dict[str, Array]:
    """Tokens from which :func:`clipped` takes the gradient."""
    low = (ratio < 1.0 - epsilon) & (advantages < 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages > 0)
    tokens = {"low": low, "high": high, "region": low | high}
    if math.isinf(dual_clip):
        return tokens
    return {**tokens, "dual": (ratio > dual_clip) & (advantages < 0)}


def capped(
    ratio: Array, logprobs: Array, advantages: Array, *, epsilon: float, epsilon_high: float
) -> Array:
    """CISPO: the ratio, clipped and constant, weights the log-likelihood: no token is cut off."""
    xp = namespace_of(ratio=ratio)
    weight = xp.clip(stop_gradient(ratio), 1.0 - epsilon, 1.0 + epsilon_high)
    return -advantages * weight * logprobs


def capped_tokens(
    ratio: Array, advantages: Array, *, epsilon: float, epsilon_high: float
) -> dict[str, Array]:
    """Tokens of either sign whose weight is not their ratio."""
    low = (ratio < 1.0 - epsilon) & (advantages != 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages != 0)
    return {"low": low, "high": high, "region": low | high}


def soft_gate(
    ratio: Array,
    logprobs: Array,
    advantages: Array,
    *,
    temperature_positive: float,
    temperature_negative: float,
) -> Array:
    """SAPO: a sigmoid of the ratio in place of the clip; its slope at a ratio of 1 is 1."""
    xp = namespace_of(ratio=ratio)
    ones = xp.ones_like(advantages)
    temperature = xp.where(advantages > 0, ones * temperature_positive, ones * temperature_negative)
    gate = 1.0 / (1.0 + xp.exp(-temperature * (ratio - 1.0)))
    return -advantages * gate * 4.0 / temperature
