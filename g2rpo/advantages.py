"""Rewards to advantages: every estimator, and the registry that gives them one signature.

Labels are integers in any order. A *group* is the rollouts of one prompt, a *task* a family of
prompts. A group *has signal* when its rewards are not all equal. A NaN reward is absent: it
enters no rank and no mean, and gets 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias, TypeVar, overload

from g2rpo._baselines import (
    gdpo_advantages,
    grpo_advantages,
    opo_advantages,
    reinforce_plus_plus_advantages,
    rloo_advantages,
)
from g2rpo._checks import as_groups, labels_of, namespace_of, require_shape, working_dtype
from g2rpo._components import weighted_rewards, weights_if_components
from g2rpo._ema_grpo import EMAState, ema_grpo_advantages
from g2rpo._gaussian import TaskStage, gaussian_advantages
from g2rpo._libraries import device_of
from g2rpo._pass_at_k import pass_at_k_advantages
from g2rpo._segments import renumber
from g2rpo._typing import Array, Groups
from g2rpo.task_weights import weigh_tasks

__all__ = [
    "ESTIMATORS",
    "EMAState",
    "Estimator",
    "TaskStage",
    "ema_grpo_advantages",
    "gaussian_advantages",
    "gdpo_advantages",
    "grpo_advantages",
    "opo_advantages",
    "pass_at_k_advantages",
    "register_estimator",
    "reinforce_plus_plus_advantages",
    "rloo_advantages",
    "takes_components",
    "takes_lengths",
]

#: ``estimator(rewards, groups, tasks, **options)`` -> advantages (N,). Rewards are (N,) or
#: (N, K); ``tasks`` may be None for a single task. Callers pass the lengths of the responses in
#: tokens, (N,), to an estimator with a keyword ``lengths``.
Estimator: TypeAlias = Callable[..., Array]

#: Estimators by name. One without tasks ignores them; one without components adds them first, with
#: ``component_weights``. Each takes ``groups`` as labels (N,) or as n, for groups of n consecutive
#: rollouts, and the additional option ``task_weights``: :func:`weigh_tasks` applies them to the
#: advantages.
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
        ``estimator(rewards, groups, tasks, **options)``; without it, returns a decorator. The entry
        of :data:`ESTIMATORS` is a wrapper that turns ``groups`` into labels and applies
        ``task_weights``; its ``__wrapped__`` is the function itself. If the function has a keyword
        ``lengths``, it gets the lengths of the responses in tokens.
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

    Notes
    -----
    Called by its name, every estimator also takes ``task_weights``, an array (num_tasks,), and its
    advantages are multiplied by them as in :func:`g2rpo.weigh_tasks`. An estimator with an option
    of that name applies it itself.

    Examples
    --------
    >>> import numpy as np
    >>> @register_estimator("rewards-themselves")
    ... def identity(rewards, groups, tasks=None):
    ...     return rewards
    >>> rewards, labels = np.asarray([1.0, 2.0]), np.asarray([0, 1])
    >>> named = ESTIMATORS.pop("rewards-themselves")
    >>> named(rewards, labels, labels, task_weights=np.asarray([1.0, 0.5]))
    array([1., 1.])
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


def takes_lengths(estimator: Estimator) -> bool:
    """Return whether an estimator takes the responses' lengths as the keyword ``lengths``."""
    return "lengths" in _parameters(estimator)


def takes_components(estimator: Estimator) -> bool:
    """Return whether an estimator takes rewards (N, K) with their ``component_weights``."""
    return "component_weights" in _parameters(estimator)


def _parameters(estimator: Estimator) -> Any:
    try:
        return inspect.signature(estimator).parameters
    except ValueError:  # some built-in functions have none
        return {}


def _built_in(name: str) -> Callable[[E], E]:
    """Register an estimator that takes a number of consecutive rollouts for ``groups`` itself."""

    def register(estimator: E) -> E:
        ESTIMATORS[name] = _with_common_options(estimator, takes_numbers=True)
        return estimator

    return register


def _with_common_options(estimator: Estimator, *, takes_numbers: bool) -> Estimator:
    """Return the estimator with the arguments that every entry of the registry takes."""
    weighs_itself = "task_weights" in _parameters(estimator)

    @wraps(estimator)
    def advantages(
        rewards: Array,
        groups: Groups,
        tasks: Array | None = None,
        *,
        task_weights: Array | None = None,
        **options: Any,
    ) -> Array:
        if labels_of(groups) is None and not takes_numbers:
            groups = _consecutive(rewards, groups)
        if task_weights is None:
            return estimator(rewards, groups, tasks, **options)
        if weighs_itself:
            return estimator(rewards, groups, tasks, task_weights=task_weights, **options)
        found = estimator(rewards, groups, tasks, **options)
        return weigh_tasks(found, tasks, task_weights)

    return advantages


def _consecutive(rewards: Array, groups: Groups) -> Array:
    """Return the labels 0, 1, ... of groups of ``groups`` consecutive rollouts."""
    xp = namespace_of(rewards=rewards)
    members = as_groups(xp, "groups", groups, rewards.shape[0])
    return xp.arange(rewards.shape[0], device=device_of(rewards)) // members


def _summed(rewards: Array, component_weights: Any) -> Array:
    """Return rewards (N,), the weighted sums of components if there are any."""
    xp = namespace_of(rewards=rewards)
    require_shape("rewards", rewards, ("N",), ("N", "K"))
    working, result = working_dtype(xp, "rewards", rewards)
    weights = weights_if_components(xp, component_weights, xp.astype(rewards, working))
    if weights is None:
        return rewards
    total, _ = weighted_rewards(xp, xp.astype(rewards, working), weights)
    return xp.astype(total, result)


def _with_options_of(function: Callable[..., Any], *without: str) -> Callable[[E], E]:
    """Show the options of the function to which an estimator hands its ``**options``."""

    def decorate(estimator: E) -> E:
        own = inspect.signature(estimator)
        hidden = {*without, *own.parameters}
        handed = inspect.signature(function).parameters.values()
        shown = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        shown += [p for p in handed if p.kind is p.KEYWORD_ONLY and p.name not in hidden]
        estimator.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
        return estimator

    return decorate


def _built_in_on_sums(
    name: str, function: Estimator, *, without: tuple[str, ...] = (), **fixed: Any
) -> None:
    """Register an estimator of rewards (N,): components are added first, tasks are ignored.

    ``without`` are options that it does not show: without effect, or another estimator's.
    """

    @_built_in(name)
    @_with_options_of(function, *fixed, *without)
    def estimator(
        rewards: Array,
        groups: Groups,
        tasks: Array | None = None,
        *,
        component_weights: Any = None,
        **options: Any,
    ) -> Array:
        return function(_summed(rewards, component_weights), groups, **fixed, **options)


_built_in_on_sums("grpo", grpo_advantages)
_built_in_on_sums("grpo-batch", grpo_advantages, scale="batch")
_built_in_on_sums("dr-grpo", grpo_advantages, scale="none", without=("epsilon",))
_built_in_on_sums("rloo", rloo_advantages)


@_built_in("gdpo")
@_with_options_of(gdpo_advantages)
def _gdpo(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    *,
    component_weights: Any = None,
    **options: Any,
) -> Array:
    return gdpo_advantages(rewards, groups, component_weights=component_weights, **options)


@_built_in("ema-grpo")
@_with_options_of(ema_grpo_advantages)
def _ema_grpo(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    *,
    component_weights: Any = None,
    **options: Any,
) -> Array:
    """Compute EMA-GRPO from an empty state; training passes the state from batch to batch."""
    rewards = _summed(rewards, component_weights)
    xp = namespace_of(rewards=rewards, tasks=tasks)
    working, _ = working_dtype(xp, "rewards", rewards)
    if tasks is None:
        tasks = xp.zeros(rewards.shape[0], dtype=xp.int32, device=device_of(rewards))
    # The state needs labels 0 .. num_tasks - 1; there are at most as many tasks as rollouts.
    state = EMAState.start(
        max(1, rewards.shape[0]), xp.zeros(1, dtype=working, device=device_of(rewards))
    )
    return ema_grpo_advantages(rewards, groups, renumber(xp, tasks), state, **options)[0]


_built_in_on_sums("reinforce++", reinforce_plus_plus_advantages, without=("group_baseline",))
_built_in_on_sums("reinforce++-baseline", reinforce_plus_plus_advantages, group_baseline=True)


@_built_in("opo")
def _opo(
    rewards: Array,
    groups: Groups,
    tasks: Array | None = None,
    *,
    lengths: Array | None = None,
    component_weights: Any = None,
) -> Array:
    return opo_advantages(_summed(rewards, component_weights), groups, lengths=lengths)


_built_in_on_sums("pass@k", pass_at_k_advantages)
_built_in("gaussian")(gaussian_advantages)
