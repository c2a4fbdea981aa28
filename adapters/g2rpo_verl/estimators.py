"""Advantage estimators under verl's signature, and the labels that verl does not pass to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import Any

import numpy as np
import torch

import g2rpo
from g2rpo import Advantages

from .options import SECTION, Options, read_options
from .shaping import Floats, Labels, Rollouts, Shaping, task_codes

logger: logging.Logger = logging.getLogger(__name__)


@dataclass
class Handover:
    """N rows of a batch with all that the trainer knows of them, and the estimator's result.

    Attributes
    ----------
    shaping : Shaping
        Turns rollouts into advantages.
    tasks : numpy.ndarray, optional
        Number of each row's task; None if the trainer knows no tasks.
    components : mapping
        Components of the reward by name, N values each.
    keys : sequence of str, optional
        The V1 trainer's keys of the rows, ``{prompt}_{session}_{output}``.
    result : tuple, optional
        The rollouts that took part, their advantages, and those of the lengths of all rows, (N,).
    """

    shaping: Shaping
    tasks: Labels | None = None
    components: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    keys: Sequence[str] | None = None
    result: tuple[Rollouts, Advantages, Floats | None] | None = None


_handover: ContextVar[Handover | None] = ContextVar("handover", default=None)


@contextmanager
def handed_over(handover: Handover) -> Iterator[Handover]:
    """Let estimators that verl calls in this context find what its call leaves out."""
    token = _handover.set(handover)
    try:
        yield handover
    finally:
        _handover.reset(token)


def register() -> list[str]:
    """Register ``g2rpo`` and a ``g2rpo-<name>`` for each of :data:`g2rpo.ESTIMATORS` with verl."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

    names = ["g2rpo", *(f"g2rpo-{name}" for name in g2rpo.ESTIMATORS)]
    for name in names:
        if name not in ADV_ESTIMATOR_REGISTRY:
            register_adv_est(name)(partial(estimate, name))
    return names


def estimate(
    adv_estimator: str,
    *,
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any,
    index: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns (N, T), both the same, as verl calls an estimator.

    Parameters
    ----------
    adv_estimator : str
        The name under which it is registered.
    token_level_rewards, response_mask : torch.Tensor
        (N, T); a row without a token takes no part and gets 0.
    config : mapping
        verl's section ``algorithm``.
    index : array
        (N,), the prompt of each row.
    """
    if index is None:
        raise ValueError("verl gave no prompt of each row (uid), which advantages in groups need")
    handover = _handover.get() or _without_labels(config, adv_estimator)
    mask = response_mask.bool()
    last = last_outputs(handover.keys, len(mask))
    rows = np.flatnonzero(mask.any(dim=1).numpy() & (last == np.arange(len(last))))
    groups = g2rpo.encode_labels([str(index[row]) for row in rows])[0]
    if rows.size and np.bincount(groups).max() < 2:
        raise ValueError(
            "every prompt has one response, and a group needs two: set actor_rollout_ref.rollout.n"
        )
    rollouts = Rollouts(
        rewards=token_level_rewards.sum(dim=-1).double().numpy()[rows],
        lengths=mask.sum(dim=1).numpy()[rows],
        groups=groups,
        tasks=None if handover.tasks is None else handover.tasks[rows],
        components={
            name: np.asarray(values, dtype=np.float64)[rows]
            for name, values in handover.components.items()
        },
    )
    found = handover.shaping(rollouts)
    policy, length = (
        None if each is None else _of_all_rows(each, rows, last)
        for each in (found.policy, found.length)
    )
    handover.result = (rollouts, found, length)
    advantages = torch.from_numpy(policy).to(token_level_rewards.dtype)[:, None] * response_mask
    return advantages, advantages


def last_outputs(keys: Sequence[str] | None, size: int) -> Labels:
    """Return for each row the row of the last output of its session; itself without keys.

    A session of several turns may leave one row for each, which all have the session's reward:
    only the last takes part, and the others get its advantage.

    Examples
    --------
    >>> last_outputs(["p_0_0", "p_1_0", "p_0_1"], 3)
    array([2, 1, 2])
    """
    if keys is None:
        return np.arange(size)
    parts = [key.rpartition("_") for key in keys]
    sessions, names = g2rpo.encode_labels([session for session, _, _ in parts])
    order = np.lexsort((np.asarray([int(output) for _, _, output in parts]), sessions))
    last = np.zeros(len(names), dtype=np.int64)
    last[sessions[order]] = order  # of equal places the last one written stays
    return last[sessions]


def _of_all_rows(values: Floats, rows: Labels, last: Labels) -> Any:
    spread = np.zeros(len(last))
    spread[rows] = values
    return spread[last]


def _without_labels(config: Any, adv_estimator: str) -> Handover:
    """Return a handover for a trainer that passes no labels on: groups are matched, no more."""
    _warn_once(
        "this trainer of verl passes no task labels on: advantages come from each prompt's group "
        f"alone, without a task stage, and all of {SECTION} that needs tasks has no effect; set "
        "trainer.v1.trainer_mode=g2rpo_sync (or g2rpo_colocate_async, g2rpo_separate_async)"
    )
    options = advantages_only(config, adv_estimator, with_tasks=False)
    options.estimator.task_stage = None
    return Handover(Shaping(options, 1))


def advantages_only(config: Any, adv_estimator: str, *, with_tasks: bool = True) -> Options:
    """Return the options for a trainer of verl's own; raise if they ask for one of ours."""
    config = config or {}
    options = read_options(config, adv_estimator)
    asked = {
        "length": options.shapes_length,
        "entropy": "entropy" in (config.get("g2rpo") or {}),
        "estimator.name=ema-grpo": options.estimator.name == "ema-grpo",
        "rewards.weights": not with_tasks and options.rewards.weights,
        "task_weights": not with_tasks and options.task_weights.weights,
    }
    if any(asked.values()):
        names = ", ".join(name for name, is_asked in asked.items() if is_asked)
        raise ValueError(
            f"{SECTION}: {names} needs a trainer of g2rpo; set "
            "trainer.v1.trainer_mode=g2rpo_sync and trainer.use_v1=True, or leave it out"
        )
    return options


def with_labels(compute_advantage: Callable[..., Any]) -> Callable[..., Any]:
    """Return verl's legacy function, with the batch's labels handed on to our estimators."""

    @wraps(compute_advantage)
    def wrapped(data: Any, adv_estimator: Any, *args: Any, **options: Any) -> Any:
        columns, name = data.non_tensor_batch, str(adv_estimator)
        ours = name == "g2rpo" or name.startswith("g2rpo-")
        # The V1 trainer calls the same function, with nothing but each row's prompt.
        if not ours or _handover.get() is not None or set(columns) <= {"uid"}:
            return compute_advantage(data, adv_estimator, *args, **options)
        _warn_once(
            f"the legacy trainer of verl gets advantages by task, and nothing else of {SECTION}, "
            "such as the entropy term and metrics by task; set trainer.use_v1=True and "
            "trainer.v1.trainer_mode=g2rpo_sync"
        )
        described = advantages_only(options.get("config"), name)
        codes, names = tasks_of(columns, described, len(columns["uid"]))
        components = components_of(columns, described)
        with handed_over(Handover(Shaping(described, 1, names), codes, components)):
            return compute_advantage(data, adv_estimator, *args, **options)

    return wrapped


def tasks_of(
    columns: Mapping[str, Any], options: Options, size: int
) -> tuple[Labels, tuple[str, ...]]:
    """Return each row's task and the tasks' names; without a column all rows are of one task."""
    column = options.task_column
    if column in columns:
        return task_codes(columns[column], options)
    if options.tasks:
        raise ValueError(
            f"the data have no column {column!r} with each prompt's task, one of "
            f"{', '.join(options.tasks)}; add it, or name another in {SECTION}.task_column"
        )
    _warn_once(
        f"the data have no column {column!r} with each prompt's task, so all prompts are one task; "
        f"add it, or name another in {SECTION}.task_column"
    )
    return np.zeros(size, dtype=np.int64), ("all",)


def components_of(columns: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return the components of the reward that the options ask for, or say which there are."""
    for name in options.components:
        if name not in columns:
            raise ValueError(
                f"the reward has no component {name!r}, which {SECTION} asks for; return it from "
                f"compute_score beside 'score' (there are: {', '.join(sorted(columns))})"
            )
    return {name: columns[name] for name in options.components}


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)
