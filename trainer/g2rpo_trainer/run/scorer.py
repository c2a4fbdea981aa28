"""Rewards of a batch of responses, component by component."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo.rewards import RewardError, TruthError, WorkerStartError
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record
from g2rpo_trainer.run.scoring import open_pool, reward_weights

Floats = npt.NDArray[np.floating[Any]]

_FAULTS = {"timeout": "timeouts", "died": "crashes", "error": "errors"}


class Rewards(NamedTuple):
    """Reward and its components of N responses, each (N,) on the host.

    Components are from 0 to 1; a user's own accuracy may leave that range. A response whose reward
    function failed has neither accuracy nor reward: both are NaN.
    """

    reward: Floats
    accuracy: Floats
    format: Floats
    structure: Floats

    def without(self, absent: npt.NDArray[np.bool_]) -> Rewards:
        """Return the rewards with NaN, which no statistic counts, where a response is absent."""
        return Rewards(*(np.where(absent, np.asarray(np.nan, c.dtype), c) for c in self))


class Scorer:
    """Scores the responses of a run; it owns the processes in which that happens.

    A context manager: leaving it ends the processes.

    Parameters
    ----------
    config : TrainConfig
        Its data and rewards sections.
    source : Source
        Of the records.

    Raises
    ------
    RunError
        If an import path leads nowhere.
    """

    def __init__(self, config: TrainConfig, source: Source) -> None:
        self._weights = reward_weights(config)
        self._reported: Counter[str] = Counter()
        try:
            self._pool = open_pool(config, source)
        except ValueError as error:
            raise RunError(f"rewards.functions: {error}") from None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def counts(self) -> Counter[str]:
        """Responses since the start that could not be scored: ``timeout``, ``died``, ``error``."""
        return Counter({str(fault): count for fault, count in self._pool.counts.items()})

    def metrics(self) -> dict[str, float]:
        """Return how many responses could not be scored since the last call, by reason."""
        counts = self.counts
        new, self._reported = counts - self._reported, counts
        return {f"rewards/{name}": float(new[fault]) for fault, name in _FAULTS.items()}

    def __call__(
        self,
        records: Sequence[Record],
        texts: Sequence[str],
        *,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> Rewards:
        """Score responses; those of one record are next to each other.

        Parameters
        ----------
        records : sequence of Record
            P records; there may be none.
        texts : sequence of str
            N = P · n responses.
        dtype : type
            Of the rewards. Single precision, as the losses take them, makes rewards equal that
            differ by a rounding; an evaluation, whose means are for people, takes double.

        Returns
        -------
        Rewards

        Raises
        ------
        RunError
            If a reward function fails, or a record's answer does not fit its problem type; the text
            says where the record stands.
        """
        each = len(texts) // max(len(records), 1)
        rows = [row for record in records for row in [record.as_row()] * each]
        places = [place for record in records for place in [_place(record)] * each]
        try:
            scored = self._pool.score(rows, texts, places=places)
        except RewardError as error:
            advice = "put it right, or set rewards.skip_errors: true"
            raise RunError(f"{error}; {advice}") from error
        except (TruthError, WorkerStartError, ImportError) as error:
            raise RunError(str(error)) from error
        totals = np.asarray(scored.totals(self._weights), dtype)
        components = np.asarray(scored.components, dtype).reshape(-1, len(self._weights))
        return Rewards(totals, *components.T)


def _place(record: Record) -> str:
    # Records of the user's own making need not know where they stand.
    return record.place or f"record of task {record.task!r}"
