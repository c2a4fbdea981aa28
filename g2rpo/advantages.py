"""Rewards to advantages: every estimator, and the registry that calls them all alike.

Labels are integers in any order. A *group* is the rollouts of one prompt, a *task* a family of
prompts. A group *has signal* when its rewards are not all equal. A NaN reward is absent: it
enters no rank and no mean, and gets 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeAlias, TypeVar, overload

from array_api_compat import is_array_api_obj

from g2rpo._baselines import gdpo_advantages, grpo_advantages, rloo_advantages
from g2rpo._checks import as_groups, labels_of, namespace_of, require_shape, working_dtype
from g2rpo._components import weighted_rewards, weights_if_components
from g2rpo._ema_grpo import EMAState, ema_grpo_advantages
from g2rpo._gaussian import TaskStage, gaussian_advantages
from g2rpo._libraries import device_of, gather
from g2rpo._segments import renumber
from g2rpo._typing import Array, Groups

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
#: them first, with ``component_weights``. Each takes for ``groups`` labels (N,) or n, for groups of
#: n consecutive rollouts, and one option besides its own: ``task_weights`` (num_tasks,), by which
#: the advantages of tasks 0 .. num_tasks - 1 are multiplied, those of other labels by 0.
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
        ``estimator(rewards, groups, tasks, **options)``; without it, returns a decorator. It is
        called with labels for ``groups``, and need not know ``task_weights``: what
        :data:`ESTIMATORS` holds takes care of both, and the function itself is its
        ``__wrapped__``.
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
    >>> ESTIMATORS.pop("rewards-themselves").__wrapped__ is identity
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
    ESTIMATORS[name] = _with_common_options(estimator, takes_numbers=False)
    return estimator


def _built_in(name: str) -> Callable[[E], E]:
    """Register an estimator that takes a number of consecutive rollouts for ``groups`` itself."""

    def register(estimator: E) -> E:
        ESTIMATORS[name] = _with_common_options(estimator, takes_numbers=True)
        return estimator

    return register


def _with_common_options(estimator: Estimator, *, takes_numbers: bool) -> Estimator:
    """Return the estimator with what every entry of the registry takes."""

    @wraps(estimator)
    def advantages(
        rewards: Array,
        groups: Groups,
        tasks: Array | None = None,
        *,
        task_weights: Sequence[float] | Array | None = None,
        **options: Any,
    ) -> Array:
        if labels_of(groups) is None and not takes_numbers:
            groups = _consecutive(rewards, groups)
        found = estimator(rewards, groups, tasks, **options)
        return found if task_weights is None else _weighted(found, tasks, task_weights)

    return advantages


def _consecutive(rewards: Array, groups: Groups) -> Array:
    """Return the labels 0, 1, ... of groups of so many consecutive rollouts."""
    xp = namespace_of(rewards=rewards)
    members = as_groups(xp, "groups", groups, rewards.shape[0])
    return xp.arange(rewards.shape[0], device=device_of(rewards)) // members


def _weighted(
    advantages: Array, tasks: Array | None, task_weights: Sequence[float] | Array
) -> Array:
    """Multiply advantages by the weights of their tasks."""
    if tasks is None:
        raise TypeError("task_weights need tasks, the label of each rollout's task")
    given = task_weights if is_array_api_obj(task_weights) else None
    xp = namespace_of(advantages=advantages, tasks=tasks, task_weights=given)
    weights = xp.asarray(task_weights, dtype=advantages.dtype, device=device_of(advantages))
    require_shape("task_weights", weights, ("num_tasks",))
    last = weights.shape[0] - 1
    known = (tasks >= 0) & (tasks <= last)
    own = gather(xp, weights, xp.clip(tasks, 0, last))
    return xp.where(known, advantages * own, 0.0)


def _of_one_reward(rewards: Array, component_weights: Any) -> Array:
    """Return rewards (N,), adding up components if there are any."""
    xp = namespace_of(rewards=rewards)
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    working, result = working_dtype(xp, "rewards", rewards)
    weights = weights_if_components(xp, component_weights, xp.astype(rewards, working))
    if weights is None:
        return rewards
    total, _ = weighted_rewards(xp, xp.astype(rewards, working), weights)
    return xp.astype(total, result)


@_built_in("grpo")
def _grpo(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    *,
    component_weights: Any = None,
    **options: Any,
) -> Array:
    return grpo_advantages(_of_one_reward(rewards, component_weights), groups, **options)


@_built_in("grpo-batch")
def _grpo_batch(
    rewards: Array, groups: Groups, tasks: Array | None = None, **options: Any
) -> Array:
    return _grpo(rewards, groups, scale="batch", **options)


@_built_in("dr-grpo")
def _dr_grpo(rewards: Array, groups: Groups, tasks: Array | None = None, **options: Any) -> Array:
    return _grpo(rewards, groups, scale="none", **options)


@_built_in("rloo")
def _rloo(
    rewards: Array, groups: Groups, tasks: Array | None = None, *, component_weights: Any = None
) -> Array:
    return rloo_advantages(_of_one_reward(rewards, component_weights), groups)


@_built_in("gdpo")
def _gdpo(rewards: Array, groups: Groups, tasks: Array | None = None, **options: Any) -> Array:
    return gdpo_advantages(rewards, groups, **options)


@_built_in("ema-grpo")
def _ema_grpo(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    *,
    component_weights: Any = None,
    **options: Any,
) -> Array:
    """Take the batch for the first: training carries the state of ``ema_grpo_advantages``."""
    rewards = _of_one_reward(rewards, component_weights)
    xp = namespace_of(rewards=rewards, tasks=tasks)
    working, _ = working_dtype(xp, "rewards", rewards)
    if tasks is None:
        tasks = xp.zeros(rewards.shape[0], dtype=xp.int32, device=device_of(rewards))
    # The state wants labels 0 .. num_tasks - 1, and no more tasks than rollouts can occur.
    state = EMAState.start(
        max(1, rewards.shape[0]), xp.zeros(1, dtype=working, device=device_of(rewards))
    )
    return ema_grpo_advantages(rewards, groups, renumber(xp, tasks), state, **options)[0]


_built_in("gaussian")(gaussian_advantages)
