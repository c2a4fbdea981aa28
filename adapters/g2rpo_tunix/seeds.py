"""Seeds of the vanilla rollout, which otherwise draws the same random numbers in every call."""

from __future__ import annotations

import numpy as np


def seed_of(seed: int, *place: int) -> int:
    """Return a seed for one call, from a run's seed and what tells the call from all others.

    Examples
    --------
    >>> len({seed_of(0, step, row) for step in range(10) for row in range(10)})
    100
    """
    # An integer: tunix's sampler donates a key to its first call, and has none for the next.
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0]) & 0x7FFFFFFF
