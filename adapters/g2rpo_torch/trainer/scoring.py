"""Rewards of a batch of responses, component by component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from g2rpo.rewards import RewardFunction, score
from g2rpo.tasks import Record


class Rewards(NamedTuple):
    """Reward and its components of N responses, each (N,) float32 from 0 to 1."""

    reward: torch.Tensor
    accuracy: torch.Tensor
    format: torch.Tensor


def score_responses(
    records: Sequence[Record],
    texts: Sequence[str],
    functions: Mapping[str, RewardFunction] | None = None,
) -> Rewards:
    """Score responses; those of one record are next to each other.

    Parameters
    ----------
    records : sequence of Record
        P records.
    texts : sequence of str
        N = P · n responses.
    functions : mapping, optional
        Problem type -> accuracy, from :func:`~g2rpo.run.records.reward_functions`.

    Returns
    -------
    Rewards
        On the CPU.
    """
    each = len(texts) // len(records)
    scores = [score(records[row // each], text, functions) for row, text in enumerate(texts)]
    return Rewards(*torch.tensor(scores, dtype=torch.float32).T)
