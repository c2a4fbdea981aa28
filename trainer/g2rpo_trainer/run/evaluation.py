"""What came out of held-out items, means, intervals, the best of k responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from g2rpo.estimates import Estimate, best_of, mean_estimate, mean_of_estimates
from g2rpo_trainer.answers import Answers, Sample
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.scoring import Rewards

SAMPLING_SEED = 260_408_539
"""Seed of the random numbers of every evaluation, so that models compare."""

# So cold that the most probable token is drawn for certain, which a temperature of 0 asks for.
_GREEDY = 1e-6


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

    @property
    def interval(self) -> dict[str, list[float]]:
        """Ends of the 95 % confidence interval of each mean reward."""
        return {task: [of["low"], of["high"]] for task, of in self.detail.items()}

    @property
    def items(self) -> dict[str, int]:
        """Number of items that each mean reward rests on."""
        return {task: of["items"] for task, of in self.detail.items()}


def sampling_temperature(config: TrainConfig) -> float:
    """Return the temperature of evaluations, by default that of the rollouts; never 0.

    Examples
    --------
    >>> from g2rpo_trainer.config import load_config
    >>> sampling_temperature(load_config(settings=["data.eval_temperature=0"]))
    1e-06
    """
    own = config.data.eval_temperature
    return max(config.rollout.temperature if own is None else own, _GREEDY)


def evaluated(
    answers: Mapping[str, Iterable[Answers]],
    advance: Callable[[int], None] = lambda items: None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> Evaluation:
    """Go through the answers to the items of all tasks, and return what came out.

    Parameters
    ----------
    answers : mapping of str to iterable of Answers
        Task -> its items, in parts; no part if it has none. They may be sampled on the way.
    advance : callable
        Called with the number of items done since its last call.
    on_samples : callable, optional
        Called with the responses of every part, as `Answers.samples` makes them.

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> ones, zeros = np.ones(4), np.zeros(4)
    >>> rewards = Rewards(np.asarray([1.0, 0.0, 1.0, 1.0]), ones, ones, zeros)
    >>> part = Answers(0, [{}, {}], ["yes"] * 4, rewards, np.full(4, 7), ones > 0)
    >>> found = evaluated({"ocr": [part]})
    >>> found.reward, found.length, found.detail["mean"]["best"]
    ({'ocr': 0.75, 'mean': 0.75}, {'ocr': 7.0}, 1.0)
    """
    measured = {}
    for task, parts in answers.items():
        numbers = []
        for part in parts:
            # Texts and pictures are not kept.
            numbers.append(_Numbers(len(part.records), part.rewards, part.lengths))
            if on_samples:
                on_samples(part.samples(task))
            advance(len(part.records))
        measured[task] = _Measured(numbers)
    return _summarised(measured)


def _summarised(measured: Mapping[str, _Measured]) -> Evaluation:
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


class _Numbers(NamedTuple):
    items: int
    rewards: Rewards
    lengths: npt.NDArray[np.integer[Any]]


class _Measured:
    """All responses to the items of one task."""

    def __init__(self, parts: Sequence[_Numbers]) -> None:
        empty = np.zeros(0)
        self._components = {
            name: np.concatenate([empty, *(getattr(part.rewards, name) for part in parts)])
            for name in (field.name for field in fields(Rewards))
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
