"""Options of the loss, shared by all functions and engines that take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from g2rpo._aggregation import Aggregation
from g2rpo._checks import require_choice, require_positive
from g2rpo._kl import KLKind
from g2rpo.loss_types import LOSSES, NUMBERS

__all__ = ["LossOptions"]


@dataclass(frozen=True)
class LossOptions:
    r"""Loss type, clip range, aggregation and KL estimate; None is the default of the loss type.

    :func:`g2rpo.policy_loss`, :func:`g2rpo.g2rpo_loss` and ``g2rpo_torch.fused_g2rpo_loss`` take it
    as ``options``, or its fields as keywords.

    Parameters
    ----------
    loss_type : str, optional
        A name in :data:`g2rpo.LOSSES`. With the ratio :math:`r = \pi / \pi_{old}` of a token and
        its advantage A, ``"ppo"`` is

        .. math:: \max(-A r, -A \, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon_{high}))

        and at most :math:`-A \cdot` ``dual_clip`` where A < 0. ``"grpo"``, ``"dapo"`` and
        ``"dr-grpo"`` are the same formula with the defaults of their papers, and ``"gspo"`` with
        the ratio of the whole response, the geometric mean of its tokens'. ``"cispo"`` weights the
        log-likelihood with the clipped ratio, ``"sapo"`` replaces the clip by a sigmoid.
    aggregation : {"token", "sequence", "constant", "task"}, optional
        Mean over tokens; mean over each response's tokens, then over responses; sum over tokens,
        divided by responses times ``max_completion_length``; or mean over each task's tokens, then
        over the tasks that have any. A response without tokens is not counted.
    epsilon, epsilon_high : float, optional
        The ratio is clipped to [1 - epsilon, 1 + epsilon_high]; an ``epsilon`` of 1 is no bound.
    dual_clip : float, optional
        Largest ratio with a gradient for a negative advantage, at least 1; infinity for no limit.
    temperature_positive, temperature_negative : float, optional
        Steepness of the sigmoid of ``"sapo"`` by the sign of the advantage.
    max_completion_length : int, optional
        In tokens; with ``aggregation="constant"``, and required there.
    kl_kind : {"k1", "k2", "k3", "k1+", "k3+", "k3-weighted"}, optional
        As in :func:`g2rpo.kl_penalty`, for the KL term of :func:`g2rpo.g2rpo_loss`.

    Raises
    ------
    TypeError
        If a number is given that the loss type does not take.
    ValueError
        If a name is unknown or a number out of its range.

    Notes
    -----
    The default of each loss type, and what TRL and verl call it, is in the page "The method".

    Examples
    --------
    >>> LossOptions("gspo", epsilon=1e-3).resolved().epsilon_high
    0.0004
    >>> LossOptions("sapo", epsilon=0.2)
    Traceback (most recent call last):
        ...
    TypeError: loss_type='sapo' takes temperature_positive, temperature_negative and no epsilon
    """

    loss_type: str = "ppo"
    aggregation: Aggregation | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    dual_clip: float | None = None
    temperature_positive: float | None = None
    temperature_negative: float | None = None
    max_completion_length: int | None = None
    kl_kind: KLKind = "k3-weighted"

    def __post_init__(self) -> None:
        require_choice("loss_type", self.loss_type, tuple(LOSSES))
        require_choice("kl_kind", self.kl_kind, get_args(KLKind))
        taken = LOSSES[self.loss_type].defaults
        for name in NUMBERS:
            if name not in taken and getattr(self, name) is not None:
                listed = ", ".join(taken) or "no number"
                raise TypeError(f"loss_type={self.loss_type!r} takes {listed} and no {name}")
        for name in ("epsilon", "epsilon_high", "temperature_positive", "temperature_negative"):
            if (value := getattr(self, name)) is not None:
                require_positive(name, value, zero=name.startswith("epsilon"))
        if self.dual_clip is not None and not self.dual_clip >= 1:
            raise ValueError(f"dual_clip must be at least 1, got {self.dual_clip!r}")
        self._check_aggregation()

    def _check_aggregation(self) -> None:
        aggregation = self.aggregation or LOSSES[self.loss_type].aggregation
        require_choice("aggregation", aggregation, get_args(Aggregation))
        if aggregation == "constant":
            if self.max_completion_length is None:
                of = "" if self.aggregation else f", which loss_type={self.loss_type!r} brings,"
                raise ValueError(f'aggregation="constant"{of} needs max_completion_length')
            require_positive("max_completion_length", self.max_completion_length)
        elif self.max_completion_length is not None:
            raise ValueError(
                f'max_completion_length goes with aggregation="constant", not {aggregation!r}'
            )

    def resolved(self) -> LossOptions:
        """Return the options with the loss type's defaults in place of None.

        A number that the loss type does not take remains None.
        """
        loss = LOSSES[self.loss_type]
        defaults = {"aggregation": loss.aggregation, **loss.defaults}
        missing: dict[str, Any] = {
            name: value for name, value in defaults.items() if getattr(self, name) is None
        }
        return replace(self, **missing)

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that the loss type takes, with its defaults in place of None."""
        options = self.resolved()
        return {name: getattr(options, name) for name in LOSSES[self.loss_type].defaults}

    @property
    def needs_whole_responses(self) -> bool:
        """Whether the loss of a token depends on the other tokens of its response."""
        is_by_response = LOSSES[self.loss_type].ratio == "response"
        return is_by_response or self.resolved().aggregation == "sequence"


# At module level, since torch.compile cannot trace `fields`.
_NAMES = tuple(field.name for field in fields(LossOptions))


def loss_options(options: LossOptions | None, keywords: Mapping[str, Any]) -> LossOptions:
    """Return the options with single ones replaced, and with defaults in place of None."""
    for name in keywords:
        if name not in _NAMES:
            raise TypeError(f"{name!r} is no option of the loss (there are: {', '.join(_NAMES)})")
    return replace(options or LossOptions(), **keywords).resolved()
