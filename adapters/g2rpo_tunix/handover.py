"""What tunix's calls leave for one another, thread by thread.

tunix calls the rollout, the reward manager and the advantage estimator one after the other in one
thread, but hands the estimator nothing except rewards. Training and evaluation may run in two
threads at once, so what is left for a later call belongs to the thread.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Rollouts(NamedTuple):
    """N scored rollouts, the responses to one prompt next to each other.

    Attributes
    ----------
    rewards : numpy.ndarray
        (N,), or (N, K) of K > 1 reward functions, in reward units; NaN is absent.
    tasks : numpy.ndarray or None
        Number of each rollout's task, (N,) int64.
    training : bool
        False in evaluation, which must leave no trace.
    manager : object
        The reward manager, which carries what its learner's estimator remembers.
    """

    rewards: npt.NDArray[np.float64]
    tasks: npt.NDArray[np.int64] | None
    training: bool
    manager: Any


class Handover(threading.local):
    """One thread's rollouts, their lengths in tokens, and the advantages made of them."""

    lengths: npt.NDArray[np.int64] | None = None
    rollouts: Rollouts | None = None
    result: Any = None

    def take_rollouts(self, size: int) -> Rollouts | None:
        """Return the rollouts of the reward manager's last call, once.

        Raises
        ------
        ValueError
            If there are not ``size`` of them.
        """
        rollouts, self.rollouts = self.rollouts, None
        if rollouts is not None and len(rollouts.rewards) != size:
            raise ValueError(
                f"rewards must be those of the reward manager's {len(rollouts.rewards)} rollouts, "
                f"got {size}"
            )
        return rollouts


handover: Handover = Handover()
