"""Length shaping: a trapezoid of reward over the response length, in tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from g2rpo._checks import namespace_of, require_shape, working_dtype
from g2rpo._libraries import device_of
from g2rpo._typing import Array, Namespace


@dataclass(frozen=True)
class LengthTarget:
    """Four thresholds, in tokens, of the length reward of one task.

    The reward is 0 below ``minimum`` and above ``maximum``, 1 from ``low`` to ``high``, and linear
    between. Equal neighbours make a step.

    Parameters
    ----------
    minimum, low : float
        Lengths at which the reward begins to rise and reaches 1; finite, 0 <= minimum <= low.
    high, maximum : float
        Lengths at which it begins to fall and reaches 0; low <= high <= maximum, may be infinite.

    Raises
    ------
    ValueError
        If the thresholds are not ordered, negative, NaN, or one of the first two is infinite.

    Examples
    --------
    >>> LengthTarget(minimum=8, low=16, high=64, maximum=float("inf")).low
    16
    """

    minimum: float
    low: float
    high: float
    maximum: float

    def __post_init__(self) -> None:
        thresholds = self.thresholds
        ordered = 0 <= self.minimum <= self.low <= self.high <= self.maximum
        if not (ordered and math.isfinite(self.low)):
            raise ValueError(
                "a length target must have 0 <= minimum <= low <= high <= maximum "
                f"with finite minimum and low, got {thresholds}"
            )

    @property
    def thresholds(self) -> tuple[float, float, float, float]:
        """(minimum, low, high, maximum), in tokens."""
        return (self.minimum, self.low, self.high, self.maximum)

    @classmethod
    def reasoning(cls, max_completion_length: int = 4096) -> LengthTarget:
        """Return the target of tasks that gain from a chain of thought.

        The reward is 1 from 1/16 to 1/2 of ``max_completion_length``, and 0 below 1/64 of it and
        beyond it.
        """
        unit = _positive_length(max_completion_length) / 64
        return cls(unit, 4 * unit, 32 * unit, 64 * unit)

    @classmethod
    def direct(cls, max_completion_length: int = 4096) -> LengthTarget:
        """Return the target of perception tasks that need no chain of thought.

        The reward is 1 up to 1/32 of ``max_completion_length``, and 0 beyond 1/8 of it.
        """
        unit = _positive_length(max_completion_length) / 64
        return cls(0, 0, 2 * unit, 8 * unit)


@dataclass(frozen=True)
class LengthTargets:
    """A length target for every task, by name.

    Parameters
    ----------
    by_task : mapping of str to LengthTarget
        Targets of single tasks.
    default : LengthTarget, optional
        Target of every other task; by default the reward is 1 for any length.

    Raises
    ------
    TypeError
        If a target is no :class:`LengthTarget`.

    Examples
    --------
    >>> targets = LengthTargets.presets(reasoning=["maths"], direct=["ocr"])
    >>> targets["maths"].high, targets["ocr"].high, targets["captions"].high
    (2048.0, 128.0, inf)
    >>> targets.table(["maths", "ocr"])
    array([[  64.,  256., 2048., 4096.],
           [   0.,    0.,  128.,  512.]])
    """

    by_task: Mapping[str, LengthTarget]
    default: LengthTarget = field(default=LengthTarget(0, 0, math.inf, math.inf))

    def __post_init__(self) -> None:
        for name, target in {**self.by_task, "default": self.default}.items():
            if not isinstance(target, LengthTarget):
                raise TypeError(
                    f"the target of {name!r} must be a LengthTarget, got {type(target).__name__}"
                )
        object.__setattr__(self, "by_task", MappingProxyType(dict(self.by_task)))

    def __getitem__(self, task: str) -> LengthTarget:
        return self.by_task.get(task, self.default)

    def table(self, names: Iterable[str]) -> npt.NDArray[np.float64]:
        """Return thresholds (num_tasks, 4) in tokens, one row for each name, in their order.

        Indexed with integer task labels it gives the ``targets`` of :func:`length_reward`.
        """
        rows = [self[name].thresholds for name in names]
        return np.asarray(rows, dtype=np.float64).reshape(-1, 4)

    @classmethod
    def presets(
        cls,
        *,
        reasoning: Iterable[str] = (),
        direct: Iterable[str] = (),
        max_completion_length: int = 4096,
    ) -> LengthTargets:
        """Return the targets of the named reasoning and direct tasks.

        Raises
        ------
        ValueError
            If a task is in both lists, or ``max_completion_length`` is not positive.
        """
        reasoning, direct = set(reasoning), set(direct)
        if both := reasoning & direct:
            names = ", ".join(sorted(both))
            raise ValueError(f"reasoning and direct must not share tasks, both have {names}")
        targets = dict.fromkeys(sorted(reasoning), LengthTarget.reasoning(max_completion_length))
        targets |= dict.fromkeys(sorted(direct), LengthTarget.direct(max_completion_length))
        return cls(targets)


def length_reward(
    lengths: Array, targets: LengthTarget | Array, /, *, right: Array | None = None
) -> Array:
    """Return the length reward of each response, from 0 to 1.

    Parameters
    ----------
    lengths : array
        Real, shape (N,), in tokens.
    targets : LengthTarget or array
        One target for all, or thresholds of shape (4,) or (N, 4), in tokens, in the order
        minimum, low, high, maximum. The values of an array are not checked: they may be traced.
    right : array, optional
        bool, shape (N,). Where False the reward is NaN (absent), so that a later matching ranks
        only the lengths of responses that are right.

    Returns
    -------
    array
        Shape (N,), of the floating dtype of ``lengths`` (the default one for integers).

    Raises
    ------
    TypeError
        If ``lengths`` is no array or complex, or ``right`` is not boolean.
    ValueError
        If a shape is wrong.

    Notes
    -----
    At the threshold of a step the reward is the higher one. With an infinite ``maximum`` the reward
    does not fall.

    References
    ----------
    G²RPO, arXiv:2604.08539, Eq. 9.

    Examples
    --------
    >>> import numpy as np
    >>> length_reward(np.asarray([0, 10, 15, 20, 50, 90, 99]), LengthTarget(10, 20, 80, 100))
    array([0.  , 0.  , 0.5 , 1.  , 1.  , 0.5 , 0.05])
    """
    given = None if isinstance(targets, LengthTarget) else targets
    xp = namespace_of(lengths=lengths, targets=given, right=right)
    require_shape("lengths", lengths, ("N",))
    size = lengths.shape[0]
    working, result = working_dtype(xp, "lengths", lengths)
    if isinstance(targets, LengthTarget):
        targets = xp.asarray(targets.thresholds, dtype=working, device=device_of(lengths))
    require_shape("targets", targets, (4,), (size, 4))
    thresholds = xp.broadcast_to(xp.reshape(xp.astype(targets, working), (-1, 4)), (size, 4))
    minimum, low, high, maximum = (thresholds[:, k] for k in range(4))
    lengths = xp.astype(lengths, working)
    rising = _ramp(xp, lengths, minimum, low)
    falling = _ramp(xp, -lengths, -maximum, -high)
    reward = xp.minimum(rising, falling)
    if right is not None:
        if not xp.isdtype(right.dtype, "bool"):
            raise TypeError(f"right must be boolean, got dtype {right.dtype}")
        require_shape("right", right, (size,))
        reward = xp.where(right, reward, xp.nan)
    return xp.astype(reward, result)


def _ramp(xp: Namespace, x: Array, foot: Array, top: Array) -> Array:
    """Return 0 below ``foot``, 1 from ``top`` on, linear between; 1 if ``foot`` is -infinity."""
    inside = xp.isfinite(foot) & (foot <= x) & (x < top)
    # Outside of the slope other numbers replace those of 0 / 0 and inf / inf.
    rise = xp.where(inside, x - xp.where(inside, foot, 0.0), 0.0)
    run = xp.where(inside, xp.where(inside, top, 1.0) - xp.where(inside, foot, 0.0), 1.0)
    flat = xp.where(x < foot, xp.zeros_like(x), xp.ones_like(x))
    return xp.where(xp.isnan(x), x, xp.where(inside, rise / run, flat))


def _positive_length(length: int) -> int:
    if length < 1:
        raise ValueError(f"max_completion_length must be at least 1 token, got {length!r}")
    return length
