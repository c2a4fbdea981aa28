"""The surrogate losses of the policy by name, each with the defaults of its paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args, overload

from g2rpo import _surrogates
from g2rpo._aggregation import Aggregation
from g2rpo._checks import require_choice
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
        ``surrogate(ratio, logprobs, advantages, **numbers)`` -> what to minimise, token by token:
        the loss of a token must follow from its own values. The arrays are of one library and of
        shape (B, T), or (n, 1) where a fused loss passes n tokens. ``ratio``, the probability of a
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


def _register_clipped(name: str, low: float, high: float, dual: float, **options: Any) -> None:
    options |= {"epsilon": low, "epsilon_high": high, "dual_clip": dual}
    register_loss(name, _surrogates.clipped, clipping=_surrogates.clipped_tokens, **options)


_register_clipped("ppo", 0.2, 0.3, 3.0)  # as the authors of G²RPO run it
_register_clipped("grpo", 0.2, 0.2, math.inf, aggregation="sequence")
_register_clipped("dapo", 0.2, 0.28, math.inf)
_register_clipped("dr-grpo", 0.2, 0.2, math.inf, aggregation="constant")
_register_clipped("gspo", 3e-4, 4e-4, math.inf, aggregation="sequence", ratio="response")
# No lower bound, as MiniMax-M1 ran it; its upper one is not published, 5 is ScaleRL's.
register_loss(
    "cispo",
    _surrogates.capped,
    clipping=_surrogates.capped_tokens,
    epsilon=1.0,
    epsilon_high=4.0,
)
register_loss(
    "sapo",
    _surrogates.soft_gate,
    aggregation="sequence",
    temperature_positive=1.0,
    temperature_negative=1.05,
)
