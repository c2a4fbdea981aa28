"""Strategies for batches of rewards as in reinforcement learning, for property-based tests.

A batch is drawn prompt by prompt. Every task has one kind of reward, every prompt belongs to one
task, and prompts have different numbers of rollouts. All choices shrink towards the simplest batch:
one rollout, reward 0, label 0, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from g2rpo._checks import require_choice

DType: TypeAlias = Literal["float32", "float64"]
Values: TypeAlias = npt.NDArray[Any]

#: Labels fit 32 bits: JAX has no more by default.
_LABELS = st.integers(-(2**31), 2**31 - 1)

#: Largest magnitude of an ordinary reward is 9 * 10**_DECADES.
_DECADES = 5


class RewardBatch(NamedTuple):
    """The arguments of an advantage function, as NumPy arrays of N rollouts.

    Attributes
    ----------
    rewards : numpy.ndarray
        Floating point, shape (N,), or (N, K) for K components. NaN is absent.
    groups, tasks : numpy.ndarray
        int64 labels, shape (N,). The rollouts of a group belong to one task.
    """

    rewards: Values
    groups: Values
    tasks: Values

    @property
    def lengths(self) -> Values:
        """Lengths of the responses in tokens, int64, shape (N,), for functions that take them.

        A function of the magnitude of the reward, so that a permutation or a subset of rollouts
        keeps them: equal and opposite rewards have equal lengths, from 1 to 64.
        """
        bits = np.abs(self.rewards).astype(np.float64).view(np.uint64)
        if bits.ndim == 2:
            bits = bits.sum(axis=1)
        # The leading bits of a product with an odd number depend on all bits of the reward.
        mixed = bits * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(58)
        return mixed.astype(np.int64) + 1

    def with_rewards(self, rewards: Values) -> RewardBatch:
        """Return the batch with other rewards."""
        return self._replace(rewards=rewards)

    def take(self, rollouts: Values) -> RewardBatch:
        """Return the rollouts at these indices, or where a mask is true."""
        return RewardBatch(*(array[rollouts] for array in self))


def _counted(draw: DrawFn, low: float, high: float, max_size: int) -> list[float]:
    """Draw the numbers of two values: few choices for a group of any size."""
    highs = draw(st.integers(0, max_size))
    lows = draw(st.integers(1 if highs == 0 else 0, max_size - highs))
    return [low] * lows + [high] * highs


def _decades() -> SearchStrategy[float]:
    """Draw a digit times a power of ten: values that a mean represents without loss of digits."""
    return st.builds(
        lambda digit, decade: float(digit * 10**decade),
        st.integers(-9, 9),
        st.integers(0, _DECADES),
    )


def _binary(draw: DrawFn, max_size: int) -> list[float]:
    return _counted(draw, 0.0, 1.0, max_size)


def _constant(draw: DrawFn, max_size: int) -> list[float]:
    value = draw(st.one_of(st.integers(0, 10).map(lambda tenths: tenths / 10), _decades()))
    return [value] * draw(st.integers(1, max_size))


def _outlier(draw: DrawFn, max_size: int) -> list[float]:
    rest, one = draw(_decades()), draw(_decades())
    return [rest] * draw(st.integers(0, max_size - 1)) + [one]


def _huge(dtype: DType) -> SearchStrategy[float]:
    largest = float(np.finfo(dtype).max)
    return st.sampled_from([0.0, 1.0, largest, -largest, largest / 2, -largest / 2])


def _subnormal(dtype: DType) -> SearchStrategy[float]:
    smallest = float(np.finfo(dtype).smallest_subnormal)
    return st.integers(-4, 4).map(lambda steps: steps * smallest)


#: Kinds with groups that are drawn as a whole, in few choices.
_GROUPS = {"binary": _binary, "constant": _constant, "outlier": _outlier}

#: Kinds with rewards that are drawn one by one.
_VALUES: dict[str, Callable[[DType], SearchStrategy[float]]] = {
    "levels": lambda dtype: st.integers(0, 4).map(lambda quarters: quarters / 4),
    # Not any float: differences must be larger than the constant in a denominator.
    "dense": lambda dtype: st.integers(0, 64).map(lambda parts: parts / 64),
    "heavy-tailed": lambda dtype: _decades(),
    "infinite": lambda dtype: st.sampled_from([0.0, 1.0, -1.0, np.inf, -np.inf]),
    "huge": _huge,
    "subnormal": _subnormal,
    "any": lambda dtype: st.floats(allow_nan=False, width=32 if dtype == "float32" else 64),
}

#: Kinds of reward without numerical difficulties: their differences are not tiny.
ORDINARY = ("binary", "levels", "dense", "constant", "outlier", "heavy-tailed")

#: Every kind of reward: 0 or 1, quarters, a fine grid in [0, 1], one value, one value except for
#: one rollout, several orders of magnitude, with infinities, up to the largest float, down to the
#: smallest, and any float.
KINDS = (*ORDINARY, "infinite", "huge", "subnormal", "any")


@st.composite
def rewards_of(
    draw: DrawFn,
    kind: str,
    /,
    *,
    max_size: int = 8,
    allow_nan: bool = False,
    dtype: DType = "float64",
) -> Values:
    """Draw the rewards of one group.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    max_size : int, optional
        Largest number of rewards, NaN included; at least 1.
    allow_nan : bool, optional
        Whether one or two more rewards may be NaN (absent).
    dtype : {"float32", "float64"}, optional
        Dtype of the rewards.

    Returns
    -------
    SearchStrategy of numpy.ndarray
        Shape (n,) with 1 <= n <= ``max_size``.

    Raises
    ------
    ValueError
        If the kind is unknown.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(rewards_of("binary"), lambda rewards: 0 < rewards.mean() < 1)
    array([0., 1.])
    """
    require_choice("kind", kind, KINDS)
    absent = draw(st.integers(0, min(2, max_size - 1))) if allow_nan else 0
    room = max_size - absent
    if kind in _GROUPS:
        rewards = _GROUPS[kind](draw, room)
    else:
        rewards = draw(st.lists(_VALUES[kind](dtype), min_size=1, max_size=room))
    return np.asarray(rewards + [np.nan] * absent, dtype=dtype)


def integer_labels(number: int) -> SearchStrategy[list[int]]:
    """Draw ``number`` different labels: any 32-bit integers in any order.

    Parameters
    ----------
    number : int
        Labels to draw.

    Returns
    -------
    SearchStrategy of list of int
        ``number`` integers, no two equal.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(integer_labels(3), lambda labels: labels != sorted(labels))
    [0, 1, -1]
    """
    return st.lists(_LABELS, min_size=number, max_size=number, unique=True)


@st.composite
def _prompts(
    draw: DrawFn,
    kinds: Sequence[str],
    kind_of_task: dict[int, str],
    max_tasks: int,
    components: int | None,
    rewards_of_a_kind: Callable[[str], SearchStrategy[Values]],
) -> tuple[int, Values]:
    """Draw a prompt's task and rewards; the kinds of new tasks are added to ``kind_of_task``."""
    task = draw(st.integers(0, max_tasks - 1))
    if task not in kind_of_task:
        kind_of_task[task] = draw(st.sampled_from(kinds))
    rewards = draw(rewards_of_a_kind(kind_of_task[task]))
    if components is None:
        return task, rewards
    columns = [rewards]
    for _ in range(components - 1):
        more = draw(rewards_of_a_kind(draw(st.sampled_from(kinds))))
        columns.append(np.resize(more, rewards.shape))  # as long as the first
    return task, np.stack(columns, axis=1)


@st.composite
def reward_batches(
    draw: DrawFn,
    *,
    kinds: Sequence[str] = KINDS,
    max_tasks: int = 3,
    max_groups: int = 6,
    max_group_size: int = 32,
    allow_nan: bool = True,
    any_labels: bool = True,
    components: int | None = None,
    dtype: DType = "float64",
) -> RewardBatch:
    """Draw a batch of rollouts of several tasks, each with one kind of reward.

    Parameters
    ----------
    kinds : sequence of str, optional
        From :data:`KINDS`; examples shrink to the first.
    max_tasks, max_groups, max_group_size : int, optional
        Largest numbers of tasks, of groups in the batch, and of rollouts in a group. There is
        always at least one.
    allow_nan : bool, optional
        Whether rewards may be NaN (absent).
    any_labels : bool, optional
        Whether labels are any integers rather than 0, 1, 2, ...
    components : int, optional
        Draw rewards of shape (N, components).
    dtype : {"float32", "float64"}, optional
        Dtype of the rewards.

    Returns
    -------
    SearchStrategy of RewardBatch
        Rollouts in any order; groups of different sizes, from 1.

    Raises
    ------
    ValueError
        If a kind is unknown.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(reward_batches(), lambda batch: len(set(batch.groups)) > 1)
    RewardBatch(rewards=array([0., 0.]), groups=array([0, 1]), tasks=array([0, 0]))
    """

    def rewards_of_a_kind(kind: str) -> SearchStrategy[Values]:
        return rewards_of(kind, max_size=max_group_size, allow_nan=allow_nan, dtype=dtype)

    prompt = _prompts(tuple(kinds), {}, max_tasks, components, rewards_of_a_kind)
    drawn = draw(st.lists(prompt, min_size=1, max_size=max_groups))
    sizes = [len(rewards) for _, rewards in drawn]
    codes = np.unique([task for task, _ in drawn], return_inverse=True)[1]
    groups: Sequence[int] = range(len(drawn))
    tasks: Sequence[int] = range(max_tasks)
    if any_labels:
        groups, tasks = draw(integer_labels(len(drawn))), draw(integer_labels(int(max(codes)) + 1))
    batch = RewardBatch(
        np.concatenate([rewards for _, rewards in drawn]),
        np.repeat(np.asarray(groups, dtype=np.int64), sizes),
        np.repeat(np.asarray(tasks, dtype=np.int64)[codes], sizes),
    )
    # One choice for the whole order: a list of N choices would take most of the time.
    seed = draw(st.integers(0, 999))
    if seed:
        return batch.take(np.random.default_rng(seed).permutation(sum(sizes)))
    return batch


@st.composite
def increasing_maps(draw: DrawFn, batch: RewardBatch, /) -> Values:
    """Draw other rewards for a batch, in the same order within every group.

    An increasing function of the rewards could merge or overflow floats, so the distinct rewards of
    each group are replaced by integers in the same order.

    Parameters
    ----------
    batch : RewardBatch
        With rewards of shape (N,). NaN stays.

    Returns
    -------
    SearchStrategy of numpy.ndarray
        Shape (N,), the dtype of the rewards.

    Examples
    --------
    >>> from hypothesis import find
    >>> batch = RewardBatch(np.asarray([0.5, 1.0]), np.asarray([0, 0]), np.asarray([0, 0]))
    >>> find(increasing_maps(batch), lambda rewards: True)
    array([0., 1.])
    """
    rewards = batch.rewards.copy()
    for group in dict.fromkeys(batch.groups.tolist()):
        here = (batch.groups == group) & ~np.isnan(batch.rewards)
        distinct, rank = np.unique(batch.rewards[here], return_inverse=True)
        # float32 holds integers up to 2**24 exactly.
        images = draw(
            st.lists(
                st.integers(-(10**6), 10**6),
                min_size=len(distinct),
                max_size=len(distinct),
                unique=True,
            )
        )
        rewards[here] = np.sort(np.asarray(images, dtype=rewards.dtype))[rank]
    return rewards
