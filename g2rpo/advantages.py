"""Rewards to advantages: every estimator, and the registry that calls them all alike.

Labels are integers in any order. A *group* is the rollouts of one prompt, a *task* a family of
prompts. A group *has signal* when its rewards are not all equal. A NaN reward is absent: it
enters no rank and no mean, and gets 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, overload

from g2rpo._baselines import gdpo_advantages, grpo_advantages, rloo_advantages
from g2rpo._checks import namespace_of, require_shape, working_dtype
from g2rpo._components import weighted_rewards, weights_if_components
from g2rpo._ema_grpo import EMAState, ema_grpo_advantages
from g2rpo._gaussian import TaskStage, gaussian_advantages
from g2rpo._libraries import device_of
from g2rpo._segments import renumber
from g2rpo._typing import Array

__all__ = [
    "ESTIMATORS",
    "EMAState",
    "Estimator",
    "TaskStage",
    "ema_grpo_advantages",
    "gaussian_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "register_estimator",
    "rloo_advantages",
]

#: ``estimator(rewards, groups, tasks, **options)`` -> advantages (N,). Rewards are (N,) or
#: (N, K); ``tasks`` may be None for a single task.
Estimator: TypeAlias = Callable[..., Array]

#: Estimators by name. Those that know no tasks ignore them; those that know no components add
#: them first, with ``component_weights``.
ESTIMATORS: dict[str, Estimator] = {}

E = TypeVar("E", bound=Estimator)


@overload
def register_estimator(name: str, estimator: E, /, *, overwrite: bool = ...) -> E: ...
@overload
def register_estimator(name: str, /, *, overwrite: bool = ...) -> Callable[[E], E]: ...
def register_estimator(
    name: str, estimator: Estimator | None = None, /, *, overwrite: bool = False
) -> Any:
    """Add an estimator to :data:`ESTIMATORS`, as a call or as a decorator.

    Parameters
    ----------
    name : str
        The name in configurations and comparisons.
    estimator : callable, optional
        ``estimator(rewards, groups, tasks, **options)``; without it, returns a decorator.
    overwrite : bool, optional
        Allow the name to be taken already.

    Returns
    -------
    callable
        The estimator, or the decorator.

    Raises
    ------
    TypeError
        If ``estimator`` cannot be called.
    ValueError
        If the name is empty or taken.

    Examples
    --------
    >>> @register_estimator("rewards-themselves")
    ... def identity(rewards, groups, tasks=None):
    ...     return rewards
    >>> ESTIMATORS.pop("rewards-themselves") is identity
    True
    """
    if estimator is None:
        return lambda function: register_estimator(name, function, overwrite=overwrite)
    if not callable(estimator):
        raise TypeError(f"estimator must be callable, got {type(estimator).__name__}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a non-empty string, got {name!r}")
    if name in ESTIMATORS and not overwrite:
        raise ValueError(f"name must not be taken, but an estimator is called {name!r} already")
    ESTIMATORS[name] = estimator
    return estimator


def _of_one_reward(rewards: Array, component_weights: Any) -> Array:
    """Return rewards (N,), adding up components if there are any."""
    xp = namespace_of(rewards=rewards)
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    working, result = working_dtype(xp, "rewards", rewards)
    weights = weights_if_components(xp, component_weights, xp.astype(rewards, working))
    if weights is None:
        return rewards
    return xp.astype(weighted_rewards(xp, xp.astype(rewards, working), weights), result)


@register_estimator("grpo")
def _grpo(
    rewards: Array,
    groups: Array,
    tasks: Array | None = None,
    *,
    component_weights: Any = None,
    **options: Any,
) -> Array:
    return grpo_advantages(_of_one_reward(rewards, component_weights), groups, **options)


@register_estimator("grpo-batch")
def _grpo_batch(rewards: Array, groups: Array, tasks: Array | None = None, **options: Any) -> Array:
    return _grpo(rewards, groups, scale="batch", **options)


@register_estimator("dr-grpo")
def _dr_grpo(rewards: Array, groups: Array, tasks: Array | None = None, **options: Any) -> Array:
    return _grpo(rewards, groups, scale="none", **options)


@register_estimator("rloo")
def _rloo(
    rewards: Array, groups: Array, tasks: Array | None = None, *, component_weights: Any = None
) -> Array:
    return rloo_advantages(_of_one_reward(rewards, component_weights), groups)


@register_estimator("gdpo")
def _gdpo(rewards: Array, groups: Array, tasks: Array | None = None, **options: Any) -> Array:
    return gdpo_advantages(rewards, groups, **options)


@register_estimator("ema-grpo")
def _ema_grpo(
    rewards: Array,
    groups: Array,
    tasks: Array | None = None,
    *,
    component_weights: Any = None,
    **options: Any,
) -> Array:
    """Take the batch for the first: training carries the state of ``ema_grpo_advantages``."""
    rewards = _of_one_reward(rewards, component_weights)
    xp = namespace_of(rewards=rewards, groups=groups, tasks=tasks)
    working, _ = working_dtype(xp, "rewards", rewards)
    if tasks is None:
        tasks = xp.zeros_like(groups)
    # The state wants labels 0 .. num_tasks - 1, and no more tasks than rollouts can occur.
    state = EMAState.start(
        max(1, rewards.shape[0]), xp.zeros(1, dtype=working, device=device_of(rewards))
    )
    return ema_grpo_advantages(rewards, groups, renumber(xp, tasks), state, **options)[0]


register_estimator("gaussian", gaussian_advantages)
