"""Shortcuts that are tried once against the plain way, and given up where the two do not agree.

A shortcut must not be seen in any result, and not every architecture allows it. Each is therefore
tried on the first prompt of a run, and where something is in its way one line in the log says what.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed as dist

from g2rpo_torch import gather_rollouts

_logger = logging.getLogger(__name__)

Shortcut = Literal["rollout", "forward", "head"]

# Mean distance of the log-probabilities of the same tokens in nats. Equal computations in another
# order stay below, also with TF32; a wrong mask or position in a trained model lies far above.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_16_BIT = 5e-2

_INSTEAD: dict[Shortcut, str] = {
    "rollout": "prompts are not shared in the rollouts, each response computes its own",
    "forward": "prompts are not shared in the log-probability and update passes, each response "
    "computes its own",
    "head": "log-probabilities are computed from full logits",
}


class Trials:
    """What is known about the shortcuts of a policy.

    ``"rollout"`` and ``"forward"`` compute a prompt once for all of its responses, in sampling and
    in the passes over given responses; ``"head"`` goes without logits.

    Parameters
    ----------
    shared_prompts : {"auto", "off"}
        ``rollout.shared_prompts`` of the run's configuration; "off" for neither of the first two.

    Examples
    --------
    >>> trials = Trials()
    >>> trials.allows("rollout", lambda: None)
    True
    >>> Trials("off").allows("rollout", lambda: None)
    False
    """

    def __init__(self, shared_prompts: Literal["auto", "off"] = "auto") -> None:
        self._verdicts: dict[Shortcut, bool] = {}
        if shared_prompts == "off":
            self._verdicts = {"rollout": False, "forward": False}

    def allows(self, shortcut: Shortcut, find_obstacle: Callable[[], str | None]) -> bool:
        """Tell whether a shortcut is taken; a single process tries it the first time.

        Several processes must try at the same time, and who asks cannot know whether all others do.
        They take the plain way until all of them call :meth:`settle`.

        Parameters
        ----------
        shortcut : {"rollout", "forward", "head"}
            Which.
        find_obstacle : callable
            As in :meth:`settle`.

        Returns
        -------
        bool
        """
        if shortcut not in self._verdicts:
            if _num_processes() > 1:
                return False
            self.settle(shortcut, find_obstacle)
        return self._verdicts[shortcut]

    def settle(self, shortcut: Shortcut, find_obstacle: Callable[[], str | None]) -> None:
        """Try a shortcut, unless its verdict is known already.

        Of several processes all must call this: the shortcut is taken if none finds an obstacle.

        Parameters
        ----------
        shortcut : {"rollout", "forward", "head"}
            Which.
        find_obstacle : callable
            Returns why this policy cannot take it, or None if it can. An exception is an obstacle
            too: the plain way may still work.
        """
        if shortcut in self._verdicts:
            return
        try:
            obstacle = find_obstacle()
        except Exception as error:
            obstacle = f"{type(error).__name__}: {' '.join(str(error).split())}"
        (is_free,), _ = gather_rollouts(torch.tensor([obstacle is None]))
        self._verdicts[shortcut] = bool(is_free.all())
        if not self._verdicts[shortcut]:
            reason = obstacle or "another process found an obstacle"
            _logger.warning("%s: %s", _INSTEAD[shortcut], reason)

    def state_dict(self) -> dict[str, bool]:
        """Return the verdicts that are known, as JSON holds them.

        A shortcut changes results by rounding, so a resumed run takes those that it took before.
        """
        return {str(shortcut): verdict for shortcut, verdict in self._verdicts.items()}

    def load_state_dict(self, state: dict[Shortcut, bool]) -> None:
        """Take over the verdicts that ``state_dict`` returned."""
        self._verdicts = {**self._verdicts, **state}

    @property
    def are_over(self) -> bool:
        """Whether every verdict is known."""
        return self._verdicts.keys() == set(get_args(Shortcut))


def disagreement(ours: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Say by how much the log-probabilities of K tokens differ, if it is more than rounding.

    Parameters
    ----------
    ours, plain : Tensor (K,)
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
    distance = float((ours - plain).abs().mean())
    # Written so that NaN disagrees.
    if distance <= _TOLERANCE.get(dtype, _TOLERANCE_16_BIT):
        return None
    return f"log-probabilities differ from the plain pass by {distance:.2g} nats on average"


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
