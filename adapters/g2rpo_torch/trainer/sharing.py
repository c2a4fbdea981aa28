"""Whether a policy computes a prompt once for all of its responses, or once for each.

Sharing is an optimisation that must not be seen in any result, and not every architecture allows
it. It is therefore tried on the first prompt of a run, against the plain way, and given up with one
line in the log where the two do not agree.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import torch

_logger = logging.getLogger(__name__)

Part = Literal["rollout", "forward"]

# Mean distance of the log-probabilities of the same tokens in nats. Equal computations in another
# order stay below, also with TF32; a wrong mask or position in a trained model lies far above.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_16_BIT = 5e-2

_NAMES: dict[Part, str] = {
    "rollout": "the rollouts",
    "forward": "the log-probability and update passes",
}


class Sharing:
    """What is known about sharing prompts, for the two parts of a step.

    Parameters
    ----------
    setting : {"auto", "off"}
        ``rollout.shared_prompts`` of the run's description.

    Examples
    --------
    >>> sharing = Sharing("auto")
    >>> sharing.allows("rollout", lambda: None)
    True
    >>> Sharing("off").allows("rollout", lambda: None)
    False
    """

    def __init__(self, setting: Literal["auto", "off"] = "auto") -> None:
        self._verdicts: dict[Part, bool] = {}
        if setting == "off":
            self._verdicts = {"rollout": False, "forward": False}

    def allows(self, part: Part, find_obstacle: Callable[[], str | None]) -> bool:
        """Tell whether prompts are shared in a part of the step.

        Parameters
        ----------
        part : {"rollout", "forward"}
            Sampling, or the passes over given responses.
        find_obstacle : callable
            Returns why this policy cannot share, or None if it can; called the first time only. An
            exception in it is an obstacle too: the plain way may still work.

        Returns
        -------
        bool
        """
        if part not in self._verdicts:
            try:
                obstacle = find_obstacle()
            except Exception as error:
                obstacle = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._verdicts[part] = obstacle is None
            if obstacle is not None:
                _logger.warning(
                    "prompts are not shared in %s, each response computes its own: %s",
                    _NAMES[part],
                    obstacle,
                )
        return self._verdicts[part]


def disagreement(shared: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Say by how much the log-probabilities of K tokens differ, if it is more than rounding.

    Parameters
    ----------
    shared, plain : Tensor (K,)
        Log-probabilities in nats of the same tokens, computed in the two ways.
    dtype : torch.dtype
        Of the model.

    Returns
    -------
    str or None

    Examples
    --------
    >>> disagreement(torch.tensor([-1.0]), torch.tensor([-1.000001]), torch.float32)
    >>> disagreement(torch.tensor([-1.0]), torch.tensor([-1.5]), torch.float32)
    'log-probabilities differ from the plain pass by 0.5 nats on average'
    """
    if not len(plain):
        return None
    distance = float((shared - plain).abs().mean())
    # Written so that NaN disagrees.
    if distance <= _TOLERANCE.get(dtype, _TOLERANCE_16_BIT):
        return None
    return f"log-probabilities differ from the plain pass by {distance:.2g} nats on average"
