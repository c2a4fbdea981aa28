"""Token losses of the policy: functions of the log-ratio and the advantage, nothing else.

Each takes the clamped log-ratio (B, T) of new to old policy, finite everywhere, and advantages
that broadcast against it, and returns what to minimise. At a ratio of 1 every one of them has the
policy gradient -A grad log pi.
"""

from __future__ import annotations

from dataclasses import dataclass

from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array, Namespace


@dataclass(frozen=True)
class Clip:
    """The knobs of all surrogates; see :func:`g2rpo.policy_loss`."""

    epsilon: float
    epsilon_high: float
    dual_clip: float | None
    temperature_positive: float
    temperature_negative: float


def clipped(xp: Namespace, log_ratio: Array, advantages: Array, clip: Clip) -> Array:
    """PPO's pessimistic clipped surrogate, with its dual clip for negative advantages."""
    ratio = xp.exp(log_ratio)
    bounded = xp.clip(ratio, 1.0 - clip.epsilon, 1.0 + clip.epsilon_high)
    loss = xp.maximum(-advantages * ratio, -advantages * bounded)
    if clip.dual_clip is None:
        return loss
    # Without a ceiling a bad token that became likely would push without limit.
    ceiling = -advantages * clip.dual_clip
    return xp.where((advantages < 0) & (loss > ceiling), xp.broadcast_to(ceiling, loss.shape), loss)


def weighted_likelihood(xp: Namespace, log_ratio: Array, advantages: Array, clip: Clip) -> Array:
    """CISPO: the ratio, capped and constant, weights the log-likelihood, so no token is cut off.

    The log-ratio stands in for the log-likelihood: they differ by a constant.
    """
    weight = xp.clip(stop_gradient(xp.exp(log_ratio)), None, 1.0 + clip.epsilon_high)
    return -advantages * weight * log_ratio


def soft_gate(xp: Namespace, log_ratio: Array, advantages: Array, clip: Clip) -> Array:
    """SAPO: a sigmoid of the ratio in place of the clip; its slope at a ratio of 1 is 1."""
    ones = xp.ones_like(advantages)
    temperature = xp.where(
        advantages > 0, ones * clip.temperature_positive, ones * clip.temperature_negative
    )
    gate = 1.0 / (1.0 + xp.exp(-temperature * (xp.exp(log_ratio) - 1.0)))
    return -advantages * gate * 4.0 / temperature
