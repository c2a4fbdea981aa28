"""Invariants of advantage functions.

An invariant draws a batch, in some cases a *change* of it, and checks the advantages. A group's
*present* rewards are those that are not NaN; a group *has signal* when its present rewards are not
all equal. By default batches have ordinary rewards only: infinities, NaN and unusual labels each
have a separate invariant, so that they do not break the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from g2rpo.testing.strategies import (
    KINDS,
    ORDINARY,
    DType,
    RewardBatch,
    Values,
    increasing_maps,
    integer_labels,
    reward_batches,
)
from g2rpo.testing.subject import Subject, Violation, scale_of

#: ``batches(dtype=...)`` -> strategy of batches.
Batches: TypeAlias = Callable[..., SearchStrategy[RewardBatch]]

ordinary_batches: Batches = partial(
    reward_batches, kinds=ORDINARY, allow_nan=False, any_labels=False
)


@dataclass(frozen=True)
class Invariant:
    """A property of advantage functions that can be checked on a batch.

    Attributes
    ----------
    name, statement : str
        Name, and the property in one line.
    check : callable
        ``check(subject, batch)``, or ``check(subject, batch, change)``, raises
        :class:`Violation` if it does not hold. ``subject(batch)`` returns the advantages.
    change : callable, optional
        ``change(batch)`` -> strategy of the changes.
    batches : callable, optional
        ``batches(dtype=...)`` -> strategy of the batches; by default ordinary ones.

    Examples
    --------
    >>> def check(subject, batch):
    ...     if np.abs(subject(batch)).max() > 3:
    ...         raise Violation("an advantage is beyond 3", advantage=subject(batch))
    >>> Invariant("bounded", "No advantage is beyond 3", check).inputs("float64").is_empty
    False
    """

    name: str
    statement: str
    check: Callable[..., None]
    change: Callable[[RewardBatch], SearchStrategy[Any]] | None = None
    batches: Batches = ordinary_batches

    def inputs(
        self, dtype: DType, batches: SearchStrategy[RewardBatch] | None = None
    ) -> SearchStrategy[tuple[Any, ...]]:
        """Return the strategy of the arguments of ``check`` after the subject."""
        drawn = self.batches(dtype=dtype) if batches is None else batches
        if self.change is None:
            return drawn.map(lambda batch: (batch,))
        change = self.change

        @st.composite
        def changed(draw: DrawFn) -> tuple[Any, ...]:
            batch = draw(drawn)
            return batch, draw(change(batch))

        return changed()


#: Invariants by name, in the order in which they are checked.
INVARIANTS: dict[str, Invariant] = {}


def register_invariant(invariant: Invariant, /) -> Invariant:
    """Add an invariant to :data:`INVARIANTS`.

    Parameters
    ----------
    invariant : Invariant
        Invariant with a new name.

    Returns
    -------
    Invariant
        The same.

    Raises
    ------
    ValueError
        If the name is empty or taken.

    Examples
    --------
    >>> register_invariant(INVARIANTS["finite"])
    Traceback (most recent call last):
    ValueError: name must be new, but 'finite' is taken
    """
    if not invariant.name or invariant.name in INVARIANTS:
        state = "taken" if invariant.name else "empty"
        raise ValueError(f"name must be new, but {invariant.name!r} is {state}")
    INVARIANTS[invariant.name] = invariant
    return invariant


Check: TypeAlias = Callable[..., None]


def _invariant(name: str, statement: str, **options: Any) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        register_invariant(Invariant(name, statement, check, **options))
        return check

    return register


def members(batch: RewardBatch) -> Iterator[tuple[Values, Values]]:
    """Yield each group's present rollouts, as indices, with their rewards."""
    present = ~np.isnan(batch.rewards)
    for group in np.unique(batch.groups[present]):
        here = np.flatnonzero((batch.groups == group) & present)
        yield here, batch.rewards[here]


def signal(batch: RewardBatch) -> Values:
    """Return which rollouts are present in a group with signal; bool, shape (N,)."""
    found = np.zeros(batch.rewards.shape, dtype=bool)
    for here, rewards in members(batch):
        found[here] = rewards.min() < rewards.max()
    return found


def _pairs(batch: RewardBatch) -> SearchStrategy[tuple[int, int]]:
    place = st.integers(0, batch.rewards.shape[0] - 1)
    return st.tuples(place, place)


@_invariant("permutation", "The order of the rollouts does not matter", change=_pairs)
def _permutation(subject: Subject, batch: RewardBatch, swap: tuple[int, int]) -> None:
    # Swaps generate all permutations, and batches are drawn in any order.
    order = np.arange(batch.rewards.shape[0])
    order[list(swap)] = swap[::-1]
    before, after = subject(batch), subject(batch.take(order))[order]
    if np.any(subject.far(after, before)):
        text = f"the advantages change when rollouts {swap[0]} and {swap[1]} swap places"
        raise Violation(text, advantage=before, swapped=after)


@st.composite
def _relabelled(draw: DrawFn, batch: RewardBatch) -> RewardBatch:
    labels = []
    for old in (batch.groups, batch.tasks):
        distinct, code = np.unique(old, return_inverse=True)
        new = np.asarray(draw(integer_labels(len(distinct))), dtype=np.int64)
        labels.append(new[code])
    return RewardBatch(batch.rewards, *labels)


@_invariant("relabelling", "Labels may be any integers", change=_relabelled)
def _relabelling(subject: Subject, batch: RewardBatch, other: RewardBatch) -> None:
    before, after = subject(batch), subject(other)
    if np.any(subject.far(after, before)):
        raise Violation(
            "the advantages depend on the labels' values",
            advantage=before,
            new_group=other.groups,
            new_task=other.tasks,
            relabelled=after,
        )


@_invariant("increasing-maps", "Only the order of a group's rewards counts", change=increasing_maps)
def _increasing_maps(subject: Subject, batch: RewardBatch, rewards: Values) -> None:
    before, after = subject(batch), subject(batch.with_rewards(rewards))
    if np.any(subject.far(after, before)):
        text = "other rewards in the same order give other advantages"
        raise Violation(text, advantage=before, new_reward=rewards, new_advantage=after)


@_invariant("ties", "Equal rewards of a group get equal advantages")
def _ties(subject: Subject, batch: RewardBatch) -> None:
    advantages = subject(batch)
    for here, rewards in members(batch):
        _, first, rank = np.unique(rewards, return_index=True, return_inverse=True)
        if np.any(subject.far(advantages[here], advantages[here[first]][rank])):
            raise Violation("equal rewards of a group differ in advantage", advantage=advantages)


@_invariant("no-signal", "A group whose rewards are all equal gets zeros")
def _no_signal(subject: Subject, batch: RewardBatch) -> None:
    advantages = subject(batch)
    for here, rewards in members(batch):
        if rewards.min() == rewards.max() and np.any(subject.far(advantages[here], 0.0)):
            text = f"a group without signal gets {_worst(advantages[here]):.3g}"
            raise Violation(text, advantage=advantages)


@_invariant("zero-sum", "The advantages of a group sum to 0")
def _zero_sum(subject: Subject, batch: RewardBatch) -> None:
    advantages = subject(batch)
    for here, _ in members(batch):
        total, allowed = _sum(subject, advantages[here])
        if not abs(total) <= allowed:
            group = batch.groups[here[0]]
            raise Violation(
                f"the advantages of group {group} sum to {total:.3g}", advantage=advantages
            )


@_invariant("sign", "A group's best gets no less than 0, its worst no more")
def _sign(subject: Subject, batch: RewardBatch) -> None:
    advantages = subject(batch)
    for here, rewards in members(batch):
        own = advantages[here]
        for edge, loses, words in (
            (rewards.max(), own < 0, "a best reward gets"),
            (rewards.min(), own > 0, "a worst reward gets"),
        ):
            wrong = (rewards == edge) & (loses | np.isnan(own)) & subject.far(own, 0.0)
            if np.any(wrong):
                text = f"{words} {_worst(own[wrong]):.3g}"
                raise Violation(text, advantage=advantages)


def _new_reward(batch: RewardBatch) -> SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, batch.rewards.shape[0] - 1), st.integers(-(10**6), 10**6))


@_invariant("task-isolation", "A reward of one task touches no other task", change=_new_reward)
def _task_isolation(subject: Subject, batch: RewardBatch, change: tuple[int, int]) -> None:
    # Changes of one reward at a time generate all changes.
    rollout, reward = change
    others = batch.tasks != batch.tasks[rollout]
    if not np.any(others):
        return
    rewards = batch.rewards.copy()
    rewards[rollout] = reward
    before, after = subject(batch), subject(batch.with_rewards(rewards))
    if np.any(subject.far(after[others], before[others])):
        text = f"when the reward of rollout {rollout} becomes {reward}, other tasks change"
        raise Violation(text, advantage=before, new_reward=rewards, new_advantage=after)


@_invariant("task-mean", "The advantages of a task have mean 0")
def _task_mean(subject: Subject, batch: RewardBatch) -> None:
    advantages, present = subject(batch), ~np.isnan(batch.rewards)
    for task in np.unique(batch.tasks[present]):
        own = advantages[(batch.tasks == task) & present]
        total, allowed = _sum(subject, own)
        if not abs(total) <= allowed:
            text = f"the mean advantage of task {task} is {total / len(own):.3g}"
            raise Violation(text, advantage=advantages)


@_invariant("task-variance", "The groups with signal of a task have variance 1")
def _task_variance(subject: Subject, batch: RewardBatch) -> None:
    advantages, live = subject(batch), signal(batch)
    for task in np.unique(batch.tasks[live]):
        own = advantages[(batch.tasks == task) & live]
        with np.errstate(invalid="ignore", over="ignore"):
            variance = np.var(own)
        if subject.far(variance, 1.0, rounding=16):
            text = f"the variance of task {task} over its groups with signal is {variance:.6g}"
            raise Violation(text, advantage=advantages)


@_invariant(
    "finite",
    "Finite and infinite rewards give finite advantages",
    batches=partial(reward_batches, kinds=KINDS, allow_nan=False, any_labels=False),
)
def _finite(subject: Subject, batch: RewardBatch) -> None:
    advantages = subject(batch)
    wrong = ~np.isfinite(advantages) & ~np.isnan(batch.rewards)
    if np.any(wrong):
        raise Violation(f"an advantage is {advantages[wrong][0]}", advantage=advantages)


@_invariant("antisymmetry", "Negated rewards get negated advantages")
def _antisymmetry(subject: Subject, batch: RewardBatch) -> None:
    before, after = subject(batch), subject(batch.with_rewards(-batch.rewards))
    if np.any(subject.far(after, -before)):
        text = "negated rewards do not get the negated advantages"
        raise Violation(text, advantage=before, of_negated=after)


@_invariant(
    "absent",
    "NaN rewards get 0 and change nothing for the others",
    batches=partial(reward_batches, kinds=ORDINARY, any_labels=False),
)
def _absent(subject: Subject, batch: RewardBatch) -> None:
    absent = np.isnan(batch.rewards)
    if not np.any(absent):
        return
    advantages = subject(batch)
    expected = np.zeros_like(advantages)
    if not np.all(absent):
        expected[~absent] = subject(batch.take(~absent))
    # Sums over fewer rollouts have other rounding errors.
    if np.any(subject.far(advantages, expected, rounding=16)):
        text = "a NaN reward changes other advantages, or has one itself"
        raise Violation(text, advantage=advantages, expected=expected)


def _sum(subject: Subject, advantages: Values) -> tuple[float, float]:
    """Return the sum, and its largest allowed magnitude."""
    if not np.all(np.isfinite(advantages)):
        return math.nan, 0.0
    allowed = subject.tolerance + 4 * subject.rounding
    # Scaled, since a sum of the largest floats overflows.
    scale = scale_of(advantages)
    total = math.fsum(advantages / scale)
    return total * scale, allowed * len(advantages) * scale


def _worst(values: Values) -> float:
    return float(values[np.argmax(np.where(np.isnan(values), np.inf, np.abs(values)))])
