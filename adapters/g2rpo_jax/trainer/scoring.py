"""Rewards of a batch of responses, component by component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo.data import PromptRecord
from g2rpo.rewards import RewardError, TruthError, WorkerStartError
from g2rpo.run.description import RunDescription
from g2rpo.run.errors import RunError
from g2rpo.run.scoring import open_pool, reward_weights

Floats = npt.NDArray[np.float32]


class Rewards(NamedTuple):
    """Reward and its components of N responses, each (N,) float32 on the host.

    A response whose reward function failed has neither accuracy nor reward: both are NaN.
    """

    reward: Floats
    accuracy: Floats
    format: Floats
    structure: Floats


class Scorer:
    """Scores the responses of a run; it owns the processes in which that happens.

    Parameters
    ----------
    description : RunDescription
        Its data and rewards sections; the tasks are named.

    Raises
    ------
    RunError
        If an import path leads nowhere.
    """

    def __init__(self, description: RunDescription) -> None:
        self._weights = reward_weights(description)
        try:
            self._pool = open_pool(description)
        except ValueError as error:
            raise RunError(f"rewards.functions: {error}") from None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def __call__(self, records: Sequence[PromptRecord], texts: Sequence[str]) -> Rewards:
        """Score responses; those of one record are next to each other.

        Parameters
        ----------
        records : sequence of PromptRecord
            P records.
        texts : sequence of str
            N = P · G responses.

        Returns
        -------
        Rewards

        Raises
        ------
        RunError
            If a reward function fails, or a record's answer does not fit its problem type.
        """
        each = len(texts) // len(records)
        rows = [record for record in records for _ in range(each)]
        places = [str(row.get("place") or f"record of task {row['task_type']!r}") for row in rows]
        try:
            scored = self._pool.score(rows, texts, places=places)
        except RewardError as error:
            advice = "put it right, or set rewards.skip_errors: true"
            raise RunError(f"{error}; {advice}") from error
        except (TruthError, WorkerStartError, ImportError) as error:
            raise RunError(str(error)) from error
        totals = np.asarray(scored.totals(self._weights), np.float32)
        return Rewards(totals, *np.asarray(scored.components, np.float32).T)
