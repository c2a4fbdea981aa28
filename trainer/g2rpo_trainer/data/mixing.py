"""The order of a run's prompts: shares of the tasks, spread evenly, and records shuffled in each.

All of it can be looked up for any position of a run, without state.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b

# Shares become whole numbers out of this one, so that the schedule is exact for any length of run.
_UNIT = 2**32

# Four rounds already pass for random (Luby and Rackoff); two more cost microseconds.
_ROUNDS = 6


def shares(sizes: Sequence[int], temperature: float) -> list[float]:
    """Return the share of each task, ``n ** (1 / temperature)`` over the sum of the tasks.

    Parameters
    ----------
    sizes : sequence of int
        Training records of each task, at least 1.
    temperature : float
        Above 0. 1 is in proportion to size, infinity is the same for all; below 1 the large tasks
        get still more.

    Returns
    -------
    list of float
        They sum to 1.

    Examples
    --------
    >>> [round(share, 3) for share in shares([900, 100], 1.0)]
    [0.9, 0.1]
    >>> [round(share, 3) for share in shares([900, 100], 2.0)]
    [0.75, 0.25]
    """
    # In logarithms, and relative to the largest, no power overflows.
    logs = [math.log(size) / temperature for size in sizes]
    powers = [math.exp(log - max(logs)) for log in logs]
    return [power / sum(powers) for power in powers]


def schedule(wanted: Sequence[float], start: int, count: int) -> list[tuple[int, int]]:
    """Return the tasks of the prompts ``start`` to ``start + count - 1`` of a run.

    The k-th prompt of a task with share p is due at ``(k + 1/2) / p``, and prompts come in the
    order in which they are due. So every stretch of a run holds each task in its share, to within
    a prompt or so, and equal shares take turns. No state: a start is found by counting.

    Parameters
    ----------
    wanted : sequence of float
        Share of each task, in any unit; at least one above 0.
    start, count : int
        First prompt and number of prompts.

    Returns
    -------
    list of (int, int)
        Task of each prompt, and number of earlier prompts of that task.

    Examples
    --------
    >>> schedule([0.75, 0.25], 0, 5)
    [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3)]
    >>> schedule([0.75, 0.25], 3, 2)
    [(0, 2), (0, 3)]
    """
    largest = max(wanted)
    weights = {
        task: max(1, round(share / largest * _UNIT)) for task, share in enumerate(wanted) if share
    }
    total = sum(weights.values())
    # So much earlier that not more than `start` prompts can be due, however they round.
    time = max(0, start - len(weights))
    done = {task: (2 * weight * time + total) // (2 * total) for task, weight in weights.items()}
    position = sum(done.values())
    due = [(Fraction(2 * done[task] + 1, weight), task) for task, weight in weights.items()]
    heapq.heapify(due)
    prompts = []
    while position < start + count:
        task = due[0][1]
        if position >= start:
            prompts.append((task, done[task]))
        done[task] += 1
        position += 1
        heapq.heapreplace(due, (Fraction(2 * done[task] + 1, weights[task]), task))
    return prompts


def shuffled(position: int, size: int, key: str) -> int:
    """Return what stands at ``position`` in the permutation of ``range(size)`` that ``key`` names.

    A Feistel network permutes the next power of four, and positions that land outside the range are
    sent through it again. Its memory does not grow with the size, and it is the same on every
    machine. Raises ValueError if the position is outside.

    Examples
    --------
    >>> [shuffled(position, 5, "epoch 0") for position in range(5)]
    [2, 1, 4, 0, 3]
    """
    if not 0 <= position < size:
        raise ValueError(f"position is {position}; it must be from 0 to {size - 1}")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    secret = blake2b(key.encode(), digest_size=16).digest()
    while True:
        position = _feistel(position, bits, secret)
        if position < size:
            return position


def _feistel(value: int, bits: int, key: bytes) -> int:
    mask = (1 << bits) - 1
    left, right = value >> bits, value & mask
    for turn in range(_ROUNDS):
        message = turn.to_bytes(1, "big") + right.to_bytes(8, "big")
        digest = blake2b(message, key=key, digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
    return left << bits | right
