"""What came out of held-out items, for every engine: means, intervals, the best of k responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo.estimates import Estimate, best_of, mean_estimate, mean_of_estimates
from g2rpo.run.scorer import Rewards


class Evaluation(NamedTuple):
    """What came out of the held-out items, by task.

    Attributes
    ----------
    reward : dict of str to float
        Mean reward, with ``"mean"`` over the tasks; NaN for a task without held-out items.
    length : dict of str to float
        Mean response length in tokens.
    detail : dict of str to dict
        Of each task and of ``"mean"``: number of ``items``, ``low`` and ``high`` end of the 95 %
        confidence interval of the mean reward, mean reward of the ``best`` of all responses to an
        item; of each task also ``best_of``, by k = 1, 2, 4, …, and the means of the components.
    """

    reward: dict[str, float]
    length: dict[str, float]
    detail: dict[str, dict[str, Any]]


class Answers(NamedTuple):
    """Some items of one task with all responses to them.

    Attributes
    ----------
    items : int
    rewards : Rewards
        Of n responses to each item, those of one item next to each other.
    lengths : array (N,), integer
        Tokens.
    """

    items: int
    rewards: Rewards
    lengths: npt.NDArray[np.integer[Any]]


def summarised(answers: Mapping[str, Sequence[Answers]]) -> Evaluation:
    """Return the evaluation of all tasks.

    Parameters
    ----------
    answers : mapping of str to sequence of Answers
        Task -> its items, in parts; no part if it has none.

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> ones, zeros = np.ones(4), np.zeros(4)
    >>> rewards = Rewards(np.asarray([1.0, 0.0, 1.0, 1.0]), ones, ones, zeros)
    >>> found = summarised({"ocr": [Answers(2, rewards, np.full(4, 7))]})
    >>> found.reward, found.length, found.detail["mean"]["best"]
    ({'ocr': 0.75, 'mean': 0.75}, {'ocr': 7.0}, 1.0)
    """
    measured = {task: _Measured(parts) for task, parts in answers.items()}
    reward = {task: of.mean.mean for task, of in measured.items()}
    detail = {
        task: {**_summary(of.mean, of.best_of_all), **of.detail()} for task, of in measured.items()
    }
    mean = mean_of_estimates([of.mean for of in measured.values()])
    best = mean_of_estimates([of.best_of_all for of in measured.values()])
    return Evaluation(
        {**reward, "mean": mean.mean},
        {task: of.length for task, of in measured.items()},
        {**detail, "mean": _summary(mean, best)},
    )


class _Measured:
    """All responses to the items of one task."""

    def __init__(self, parts: Sequence[Answers]) -> None:
        empty = np.zeros(0, np.float32)
        self._components = {
            name: np.concatenate([empty, *(getattr(part.rewards, name) for part in parts)])
            for name in Rewards._fields
        }
        rewards = self._components["reward"]
        lengths = np.concatenate([empty, *(part.lengths for part in parts)])
        self.length = float(lengths.mean()) if len(lengths) else np.nan
        items = sum(part.items for part in parts)
        self._generations = len(rewards) // items if items else 1
        self._groups = np.arange(items).repeat(self._generations)
        self.mean = mean_estimate(rewards, self._groups)
        self.best_of_all = self._best(self._generations)

    def detail(self) -> dict[str, Any]:
        powers = [2**power for power in range(self._generations.bit_length())]
        counts = sorted({*powers, self._generations})
        return {
            "generations": self._generations,
            "best_of": {str(k): self._best(k).mean for k in counts},
            **{
                name: _mean(values) for name, values in self._components.items() if name != "reward"
            },
        }

    def _best(self, k: int) -> Estimate:
        return best_of(self._components["reward"], self._groups, k)


def _summary(mean: Estimate, best: Estimate) -> dict[str, Any]:
    low, high = mean.interval()
    return {"items": mean.prompts, "low": low, "high": high, "best": best.mean}


def _mean(values: npt.NDArray[np.floating[Any]]) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
