"""From verl's rollouts to advantages: the core's :class:`g2rpo.Shaping`, configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import g2rpo
from g2rpo import Advantages
from g2rpo._suggest import unknown_name

from .options import SECTION, Options

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]


class Rollouts(NamedTuple):
    """N rollouts, in any order.

    Attributes
    ----------
    rewards : numpy.ndarray
        (N,), in reward units; NaN is absent.
    lengths, groups, tasks : numpy.ndarray
        Integers (N,): tokens, number of the prompt, number of the task.
    components : mapping
        Components of the reward by name, (N,) each.
    """

    rewards: Floats
    lengths: Labels
    groups: Labels
    tasks: Labels | None
    components: Mapping[str, Floats]


def task_codes(labels: Sequence[Any], options: Options) -> tuple[Labels, tuple[str, ...]]:
    """Return the number of each label's task, and the names of all tasks.

    Raises
    ------
    TypeError
        If a label is no string.
    ValueError
        If a label is none of the tasks that ``options`` list.

    Examples
    --------
    >>> task_codes(["ocr", "maths", "ocr"], Options())
    (array([1, 0, 1]), ('maths', 'ocr'))
    """
    column = options.task_column
    try:
        codes, names = g2rpo.encode_labels(list(labels))
    except TypeError as error:
        raise TypeError(
            f"column {column!r} must hold the names of tasks ({error}); write them as strings, or "
            f"name another column in {SECTION}.task_column"
        ) from None
    if not options.tasks:
        return codes, names
    for name in names:
        if name not in options.tasks:
            raise ValueError(
                f"column {column!r}: {unknown_name('task', name, options.tasks)}; "
                f"add it to {SECTION}.tasks"
            )
    numbers = np.asarray([options.tasks.index(name) for name in names], dtype=np.int64)
    return numbers[codes], tuple(options.tasks)


class Shaping(g2rpo.Shaping):
    """The core's shaping of verl's rollouts.

    Parameters
    ----------
    options : Options
        As :func:`~g2rpo_verl.options.read_options` returns them.
    longest : int
        Longest response in tokens, for targets that follow from it.
    tasks : sequence of str
        The tasks, where the options list none.
    """

    def __init__(self, options: Options, longest: int, tasks: Sequence[str] = ()) -> None:
        super().__init__(options.shaping(longest, tasks))
        self._reward_names = list(options.rewards.weights)

    def __call__(self, rollouts: Rollouts) -> Advantages:
        """Return the weighted advantages of a batch; called once a step."""
        rewards, components = rollouts.rewards, rollouts.components
        if self._reward_names:
            rewards = np.stack([components[name] for name in self._reward_names], axis=1)
        return self.advantages(
            rewards,
            rollouts.groups,
            rollouts.tasks,
            lengths=rollouts.lengths,
            accuracy=components.get("accuracy"),
        ).weighted(rollouts.tasks)
