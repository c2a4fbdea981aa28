"""The surrogate losses of the policy by name, each with the defaults of its paper.

A surrogate takes the ratio (B, T) of new to old policy and the log-probabilities of the new one,
both differentiable and finite where masked out, constant advantages (B, T), and its numbers; it
returns token losses to minimise. At a ratio of 1 all have the policy gradient -A grad log pi.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args, overload

from g2rpo._aggregation import Aggregation
from g2rpo._checks import namespace_of, require_choice
from g2rpo._libraries import stop_gradient
from g2rpo._typing import Array

__all__ = ["LOSSES", "Clipping", "Loss", "Surrogate", "register_loss"]

#: ``surrogate(ratio, logprobs, advantages, **numbers)`` -> token losses, all of shape (B, T).
Surrogate: TypeAlias = Callable[..., Array]
#: ``clipping(ratio, advantages, **numbers)`` -> name: bool (B, T).
Clipping: TypeAlias = Callable[..., Mapping[str, Array]]

#: Numbers that a loss may take, as :class:`g2rpo.LossOptions` describes them.
NUMBERS = ("epsilon", "epsilon_high", "dual_clip", "temperature_positive", "temperature_negative")


class Loss(NamedTuple):
    """A surrogate loss of the policy with its defaults.

    Attributes
    ----------
    surrogate : callable
        ``surrogate(ratio, logprobs, advantages, **numbers)`` -> losses, token by token.
    defaults : mapping of str to float
        The numbers of :class:`g2rpo.LossOptions` that it takes, with their defaults.
    aggregation : {"token", "sequence", "constant", "task"}
        Default aggregation.
    ratio : {"token", "response"}
        Whether a token's ratio is its own or that of its response.
    clipping : callable or None
        ``clipping(ratio, advantages, **numbers)`` -> name: bool, the tokens that count in the
        metric ``clip_ratio/<name>_mean``.
    """

    surrogate: Surrogate
    defaults: Mapping[str, float]
    aggregation: Aggregation
    ratio: Literal["token", "response"]
    clipping: Clipping | None


#: Losses by name, for the option ``loss_type``.
LOSSES: dict[str, Loss] = {}

S = TypeVar("S", bound=Surrogate)


@overload
def register_loss(
    name: str,
    surrogate: S,
    /,
    *,
    aggregation: Aggregation = ...,
    ratio: Literal["token", "response"] = ...,
    clipping: Clipping | None = ...,
    overwrite: bool = ...,
    **defaults: float,
) -> S: ...
@overload
def register_loss(
    name: str,
    /,
    *,
    aggregation: Aggregation = ...,
    ratio: Literal["token", "response"] = ...,
    clipping: Clipping | None = ...,
    overwrite: bool = ...,
    **defaults: float,
) -> Callable[[S], S]: ...
def register_loss(
    name: str,
    surrogate: Surrogate | None = None,
    /,
    *,
    aggregation: Aggregation = "token",
    ratio: Literal["token", "response"] = "token",
    clipping: Clipping | None = None,
    overwrite: bool = False,
    **defaults: float,
) -> Any:
    """Add a surrogate loss to :data:`LOSSES`, as a call or as a decorator.

    Parameters
    ----------
    name : str
        The ``loss_type`` in calls and configurations.
    surrogate : callable, optional
        ``surrogate(ratio, logprobs, advantages, **numbers)`` -> token losses to minimise. The loss
        of a token must depend on its own values only. The arrays are of one library and of shape
        (B, T), or (n, 1) where a fused loss passes n tokens. ``ratio``, the probability of a
        token under the policy over that under the policy that sampled it, and ``logprobs`` are
        differentiable. Masked-out tokens have a ratio of 1, a log-probability and an advantage of
        0. Without a surrogate, returns a decorator.
    aggregation : {"token", "sequence", "constant", "task"}, optional
        Default aggregation.
    ratio : {"token", "response"}, optional
        ``"response"``: every token gets the geometric mean of its response's ratios, in GSPO's form
        by token, with the gradient of its own log-probability.
    clipping : callable, optional
        ``clipping(ratio, advantages, **numbers)`` -> name: bool (B, T), reported as
        ``clip_ratio/<name>_mean``.
    overwrite : bool, optional
        Allow the name to be taken already.
    **defaults : float
        The numbers of :class:`g2rpo.LossOptions` that the surrogate takes, with their defaults:
        ``epsilon``, ``epsilon_high``, ``dual_clip``, ``temperature_positive``,
        ``temperature_negative``. Setting one that is not among them is an error.

    Returns
    -------
    callable
        The surrogate, or the decorator.

    Raises
    ------
    TypeError
        If ``surrogate`` cannot be called, or a default is of an unknown name.
    ValueError
        If the name is empty or taken, or ``aggregation`` or ``ratio`` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from g2rpo import policy_loss
    >>> @register_loss("one-sided", epsilon_high=0.5)
    ... def one_sided(ratio, logprobs, advantages, *, epsilon_high):
    ...     return -advantages * ratio.clip(None, 1 + epsilon_high)
    >>> logprobs, mask = np.log(np.asarray([[0.9, 0.5]])), np.ones((1, 2), dtype=bool)
    >>> loss, _ = policy_loss(
    ...     logprobs, np.log(np.full((1, 2), 0.5)), np.asarray([1.0]), mask, loss_type="one-sided"
    ... )
    >>> round(float(loss), 4)
    -1.25
    >>> _ = LOSSES.pop("one-sided")
    """
    if surrogate is None:
        return lambda function: register_loss(
            name,
            function,
            aggregation=aggregation,
            ratio=ratio,
            clipping=clipping,
            overwrite=overwrite,
            **defaults,
        )
    for role, function in (("surrogate", surrogate), ("clipping", clipping)):
        if function is not None and not callable(function):
            raise TypeError(f"{role} must be callable, got {type(function).__name__}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a non-empty string, got {name!r}")
    if name in LOSSES and not overwrite:
        raise ValueError(f"name must not be taken, but a loss is called {name!r} already")
    require_choice("aggregation", aggregation, get_args(Aggregation))
    require_choice("ratio", ratio, ("token", "response"))
    if unknown := sorted(set(defaults) - set(NUMBERS)):
        raise TypeError(f"defaults must be among {', '.join(NUMBERS)}, got {', '.join(unknown)}")
    LOSSES[name] = Loss(surrogate, dict(defaults), aggregation, ratio, clipping)
    return surrogate


def _clipped(
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
    # Without an upper bound the loss of a likely token with a negative advantage is unlimited.
    ceiling = -advantages * dual_clip
    return xp.where((advantages < 0) & (loss > ceiling), ceiling, loss)


def _clipped_tokens(
    ratio: Array, advantages: Array, *, epsilon: float, epsilon_high: float, dual_clip: float
) -> dict[str, Array]:
    """Tokens without a gradient because of the clip of :func:`_clipped`."""
    low = (ratio < 1.0 - epsilon) & (advantages < 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages > 0)
    tokens = {"low": low, "high": high, "region": low | high}
    if math.isinf(dual_clip):
        return tokens
    return {**tokens, "dual": (ratio > dual_clip) & (advantages < 0)}


def _capped(
    ratio: Array, logprobs: Array, advantages: Array, *, epsilon: float, epsilon_high: float
) -> Array:
    """CISPO: log-likelihood weighted by the clipped, constant ratio; every token has a gradient."""
    xp = namespace_of(ratio=ratio)
    weight = xp.clip(stop_gradient(ratio), 1.0 - epsilon, 1.0 + epsilon_high)
    return -advantages * weight * logprobs


def _capped_tokens(
    ratio: Array, advantages: Array, *, epsilon: float, epsilon_high: float
) -> dict[str, Array]:
    """Tokens with a non-zero advantage and a clipped ratio."""
    low = (ratio < 1.0 - epsilon) & (advantages != 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages != 0)
    return {"low": low, "high": high, "region": low | high}


def _soft_gate(
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


def _register_clipped(name: str, low: float, high: float, dual: float, **options: Any) -> None:
    options |= {"epsilon": low, "epsilon_high": high, "dual_clip": dual}
    register_loss(name, _clipped, clipping=_clipped_tokens, **options)


_register_clipped("ppo", 0.2, 0.3, 3.0)  # as the authors of G²RPO run it
_register_clipped("grpo", 0.2, 0.2, math.inf, aggregation="sequence")
_register_clipped("dapo", 0.2, 0.28, math.inf)
_register_clipped("dr-grpo", 0.2, 0.2, math.inf, aggregation="constant")
_register_clipped("gspo", 3e-4, 4e-4, math.inf, aggregation="sequence", ratio="response")
# No lower bound, as MiniMax-M1 ran it; its upper one is not published, 5 is ScaleRL's.
register_loss(
    "cispo",
    _capped,
    clipping=_capped_tokens,
    epsilon=1.0,
    epsilon_high=4.0,
)
register_loss(
    "sapo",
    _soft_gate,
    aggregation="sequence",
    temperature_positive=1.0,
    temperature_negative=1.05,
)
