"""EMA-GRPO: GRPO whose scale is the running standard deviation of the task's rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from g2rpo._baselines import prepare
from g2rpo._checks import (
    namespace_of,
    require_choice,
    require_floating,
    require_labels,
    require_positive,
    require_shape,
)
from g2rpo._libraries import device_of, gather, to_numpy
from g2rpo._moments import SHRINK, Moments, moments
from g2rpo._segments import segment_peak
from g2rpo._typing import Array, Groups, Namespace

Outliers: TypeAlias = Literal["clip", "group", "keep"]


class EMAState(NamedTuple):
    """Running moments of every task's rewards, shape (num_tasks,) each; save it with the model.

    The state has the variance m2 - m1² instead of the second moment m2: its update is equivalent,
    without cancellation.

    Attributes
    ----------
    mean, variance : array
        In reward units and their square.
    seen : array of bool
        Whether the task has been met; its first batch initialises it.

    Examples
    --------
    >>> import numpy as np
    >>> state = EMAState.start(2, like=np.zeros(0))
    >>> state.to_json()
    {'mean': [0.0, 0.0], 'variance': [0.0, 0.0], 'seen': [False, False]}
    """

    mean: Array
    variance: Array
    seen: Array

    @classmethod
    def start(cls, num_tasks: int, like: Array) -> EMAState:
        """Return the state before the first batch, on the library, device, dtype of ``like``."""
        xp = namespace_of(like=like)
        require_floating(xp, "like", like)
        zeros = xp.zeros(num_tasks, dtype=like.dtype, device=device_of(like))
        return cls(zeros, zeros, xp.zeros_like(zeros, dtype=xp.bool))

    def to_json(self) -> dict[str, Any]:
        """Return the state as dictionaries and lists, with infinities as strings, for JSON."""
        return {
            name: [
                value if math.isfinite(value) else str(value) for value in to_numpy(array).tolist()
            ]
            for name, array in self._asdict().items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], like: Array) -> EMAState:
        """Return the state that :meth:`to_json` wrote, on the library, device, dtype of ``like``.

        Raises
        ------
        ValueError
            If ``data`` has other fields than a state.
        """
        xp = namespace_of(like=like)
        if set(data) != set(cls._fields):
            raise ValueError(
                f"EMAState must have the fields {', '.join(cls._fields)}, "
                f"got {', '.join(sorted(data)) or 'none'}"
            )
        mean, variance = (
            xp.asarray([float(x) for x in data[name]], dtype=like.dtype, device=device_of(like))
            for name in ("mean", "variance")
        )
        seen = xp.asarray(list(data["seen"]), dtype=xp.bool, device=device_of(like))
        return cls(mean, variance, seen)


def ema_grpo_advantages(
    rewards: Array,
    groups: Groups,
    tasks: Array,
    /,
    state: EMAState,
    *,
    decay: float = 0.99,
    minimum_std: float = 1e-3,
    epsilon: float = 1e-6,
    outliers: Outliers = "clip",
    limit: float = 5.0,
) -> tuple[Array, EMAState]:
    r"""Return EMA-GRPO's advantages and the state after this batch.

    .. math:: A = (R - \mathrm{mean}_{group}) / (\sigma_{task} + \epsilon), \qquad
              \sigma^2 = m_2 - m_1^2

    with the first and second moments of the task's rewards averaged over batches, including
    this one.

    Parameters
    ----------
    rewards : array
        Real, shape (N,). NaN is absent.
    groups : array or int
        Integer prompt labels, shape (N,); or n, for groups of n consecutive rollouts.
    tasks : array
        Integer task labels 0 .. num_tasks - 1, shape (N,). Other labels get advantage 0.
    state : EMAState
        From the previous batch, or :meth:`EMAState.start`.
    decay : float, optional
        Weight of the previous moments, in [0, 1].
    minimum_std : float, optional
        Smallest standard deviation, in reward units.
    epsilon : float, optional
        Added to the standard deviation.
    outliers : {"clip", "group", "keep"}, optional
        Advantages beyond ``limit`` are clipped, as in the paper; or their whole group is divided
        by its own population standard deviation instead, as in the paper's code; or kept.
    limit : float, optional
        Largest advantage in magnitude.

    Returns
    -------
    advantages : array
        Shape (N,), the device and floating dtype of ``rewards``.
    state : EMAState
        Argument of the next call. A task without a finite reward in this batch keeps its moments;
        an infinite reward makes its group's advantages NaN and enters no moment.

    Raises
    ------
    TypeError
        If an argument is of a wrong type.
    ValueError
        If a shape is wrong or an option is out of its range.

    References
    ----------
    OneThinker, arXiv:2512.03043.

    Examples
    --------
    >>> import numpy as np
    >>> rewards, groups = np.asarray([0.0, 1.0, 0.0, 0.0]), np.asarray([0, 0, 1, 1])
    >>> state = EMAState.start(1, rewards)
    >>> advantages, state = ema_grpo_advantages(rewards, groups, np.zeros(4, int), state)
    >>> advantages.round(4), state.mean
    (array([-1.1547,  1.1547,  0.    ,  0.    ]), array([0.25]))
    """
    xp, values, groups, result = prepare(rewards, groups)
    require_labels(xp, "tasks", tasks, values.shape[0])
    for name, array in state._asdict().items():
        require_shape(f"state.{name}", array, ("num_tasks",))
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay!r}")
    require_positive("minimum_std", minimum_std)
    require_positive("epsilon", epsilon, zero=True)
    require_positive("limit", limit)
    require_choice("outliers", outliers, ("clip", "group", "keep"))
    if values.shape[0] == 0:
        return xp.astype(values, result), state

    state = _update(xp, values, tasks, state, decay)
    std = xp.sqrt(xp.astype(state.variance, values.dtype))
    std = xp.maximum(std, xp.ones_like(std) * minimum_std) + epsilon
    last = state.mean.shape[0] - 1
    known = (tasks >= 0) & (tasks <= last)
    group = moments(xp, values, groups)
    advantages = group.deviation / SHRINK / xp.take(std, xp.clip(tasks, 0, last))
    advantages = xp.where(known, advantages, 0.0)
    if outliers == "clip":
        advantages = xp.clip(advantages, -limit, limit)
    elif outliers == "group":
        advantages = _rescale_outlier_groups(xp, advantages, group, groups, limit, epsilon)
    return xp.astype(advantages, result), state


def _update(xp: Namespace, values: Array, tasks: Array, state: EMAState, decay: float) -> EMAState:
    # An infinite reward enters no moment: it would stay in the state.
    batch = moments(xp, xp.where(xp.isinf(values), xp.nan, values), tasks)
    # The statistics of a task are those of any of its rollouts: find one in the sorted labels.
    order = xp.argsort(tasks, stable=True)
    labels = gather(xp, tasks, order)
    codes = xp.arange(state.mean.shape[0], dtype=tasks.dtype, device=device_of(tasks))
    place = xp.clip(xp.searchsorted(labels, codes), 0, tasks.shape[0] - 1)
    one = gather(xp, order, place)
    size = gather(xp, batch.size, one)
    met = (gather(xp, labels, place) == codes) & (size > 0)

    dtype = state.mean.dtype
    mean = xp.astype(gather(xp, batch.mean, one) / SHRINK, dtype)
    spread = gather(xp, batch.range, one) / SHRINK
    square = gather(xp, batch.square_sum, one) / xp.where(met, size, 1.0)
    variance = xp.astype(square * spread * spread, dtype)
    shift = state.mean - mean
    fresh = 1.0 - decay
    running = decay * state.variance + fresh * variance + decay * fresh * shift * shift
    return EMAState(
        xp.where(met, xp.where(state.seen, decay * state.mean + fresh * mean, mean), state.mean),
        xp.where(met, xp.where(state.seen, running, variance), state.variance),
        state.seen | met,
    )


def _rescale_outlier_groups(
    xp: Namespace, advantages: Array, group: Moments, groups: Groups, limit: float, epsilon: float
) -> Array:
    """Divide groups with an advantage beyond the limit by their own standard deviation."""
    own = group.deviation / (group.std(xp, unbiased=False) + SHRINK * epsilon)
    magnitude = xp.abs(advantages)
    peak = segment_peak(xp, xp.where(xp.isnan(magnitude), 0.0, magnitude), groups)
    return xp.where(peak > limit, own, advantages)
