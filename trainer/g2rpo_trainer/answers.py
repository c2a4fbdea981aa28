"""Answers to held-out items, and their statistics by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from g2rpo.estimates import Estimate, best_of, mean_estimate, mean_of_estimates
from g2rpo_trainer.files import to_json
from g2rpo_trainer.record import Record
from g2rpo_trainer.scoring import Rewards

Sample = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """Some held-out items of one task with all responses to them.

    Attributes
    ----------
    first : int
        Number of the first item among those of its task.
    records : sequence of Record
        P items that follow one another; there is at least one.
    texts : sequence of str
        N = P · n responses, those to one item next to each other.
    rewards : Rewards
        Rewards of the N responses.
    lengths : array (N,), integer
        Tokens.
    ended : array (N,), bool
        False where the response was cut off at its length limit.
    opened : sequence of str
        Part of the answer format that each item's prompt ends with, and its responses begin with;
        empty for none.
    """

    first: int
    records: Sequence[Record]
    texts: Sequence[str]
    rewards: Rewards
    lengths: npt.NDArray[np.integer[Any]]
    ended: npt.NDArray[np.bool_]
    opened: Sequence[str] = ()

    def samples(self, task: str) -> list[Sample]:
        """Return the responses one by one, each with its item and its reward.

        Returns
        -------
        list of dict
            ``task``, ``item`` (its number), ``place`` where it has one, ``problem``, ``answer``,
            ``response``, ``reward`` and its components, ``length``, ``ended``; ``opened`` where the
            response begins with a text of the prompt. A reward that is absent is None.
        """
        each = len(self.texts) // len(self.records)
        columns = {name: column.tolist() for name, column in self.rewards.columns().items()}
        columns |= {"length": self.lengths.tolist(), "ended": self.ended.tolist()}
        samples = []
        for row, text in enumerate(self.texts):
            record = self.records[row // each]
            opened = self.opened[row // each] if self.opened else ""
            samples.append(
                {
                    "task": task,
                    "item": self.first + row // each,
                    **({"place": record.place} if record.place else {}),
                    "problem": record.problem,
                    "answer": record.answer,
                    **({"opened": opened} if opened else {}),
                    "response": text,
                    **{name: to_json(column[row]) for name, column in columns.items()},
                }
            )
        return samples


@dataclass(frozen=True)
class Evaluation:
    """Results on the held-out items, by task.

    Attributes
    ----------
    reward : dict of str to float
        Mean reward, with ``"mean"`` over the tasks; NaN for a task without held-out items.
    length : dict of str to float
        Mean response length in tokens.
    detail : dict of str to dict
        For each task and ``"mean"``: number of ``items``, ``low`` and ``high`` end of the 95 %
        confidence interval of the mean reward, mean reward of the ``best`` of all responses to an
        item; for each task also ``best_of``, by k = 1, 2, 4, …, and the means of the components.
    item_rewards : dict of str to list of float
        Mean reward of each item of a task, in their order; NaN where all are absent.
    """

    reward: dict[str, float]
    length: dict[str, float]
    detail: dict[str, dict[str, Any]]
    item_rewards: dict[str, list[float]] = field(default_factory=dict)

    @property
    def interval(self) -> dict[str, list[float]]:
        """Ends of the 95 % confidence interval of each mean reward."""
        return {task: [of["low"], of["high"]] for task, of in self.detail.items()}

    @property
    def items(self) -> dict[str, int]:
        """Number of items behind each mean reward."""
        return {task: of["items"] for task, of in self.detail.items()}

    def change_since(self, before: Evaluation) -> dict[str, list[float]]:
        """Return the ends of the 95 % confidence interval of each mean reward's change.

        Both evaluations have answered the same items, so the interval is that of the mean of their
        differences, item by item: it is narrower than those of the two means together.

        Parameters
        ----------
        before : Evaluation
            Earlier evaluation of the same run.

        Returns
        -------
        dict of str to list of float
            By task, and ``"mean"``; NaN with fewer than two items, or if their numbers differ.

        Examples
        --------
        >>> first, last = (Evaluation({}, {}, {}, {"ocr": r}) for r in ([0, 0.5, 1], [0.1, 0.7, 1]))
        >>> [round(end, 3) for end in last.change_since(first)["ocr"]]
        [-0.148, 0.348]
        """
        changes = {}
        for task, rewards in self.item_rewards.items():
            earlier = before.item_rewards.get(task, [])
            same = len(earlier) == len(rewards)
            differences = np.subtract(rewards, earlier) if same else np.zeros(0)
            changes[task] = mean_estimate(differences, np.arange(len(differences)))
        changes["mean"] = mean_of_estimates(list(changes.values()))
        return {task: list(change.interval()) for task, change in changes.items()}

    def metrics(self) -> dict[str, float]:
        """Return the metrics of an evaluation during a run; tasks without items have none.

        Examples
        --------
        >>> detail = {"ocr": {"low": 0.4, "high": 0.6}}
        >>> Evaluation({"ocr": 0.5}, {"ocr": 12.0}, detail).metrics()
        {'eval_reward/ocr': 0.5, 'eval_reward_low/ocr': 0.4, 'eval_reward_high/ocr': 0.6,
        'eval_completions/mean_length/ocr': 12.0}
        """
        metrics = {}
        for task, reward in self.reward.items():
            suffix = "" if task == "mean" else f"/{task}"
            metrics["eval_reward" + suffix] = reward
            for end in ("low", "high"):
                metrics[f"eval_reward_{end}{suffix}"] = self.detail[task][end]
        for task, length in self.length.items():
            metrics[f"eval_completions/mean_length/{task}"] = length
        return {name: value for name, value in metrics.items() if not math.isnan(value)}


def evaluated(
    answers: Mapping[str, Iterable[Answers]],
    advance: Callable[[int], None] = lambda items: None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> Evaluation:
    """Return the results of the answers to the items of all tasks.

    Parameters
    ----------
    answers : mapping of str to iterable of Answers
        Task to its items, batch by batch; empty if it has none. They may be sampled lazily.
    advance : callable
        Called with the number of items done since its last call.
    on_samples : callable, optional
        Called with the responses of every batch, as `Answers.samples` returns them.

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
    results = {}
    for task, parts in answers.items():
        items = 0
        columns: list[npt.NDArray[Any]] = [np.zeros((len(fields(Rewards)), 0))]
        lengths: list[npt.NDArray[Any]] = [np.zeros(0)]
        for part in parts:
            # Texts and images are not kept.
            items += len(part.records)
            columns.append(np.stack(list(part.rewards.columns().values())))
            lengths.append(part.lengths)
            if on_samples:
                on_samples(part.samples(task))
            advance(len(part.records))
        rewards = Rewards(*np.concatenate(columns, axis=1))
        results[task] = _TaskResult(items, rewards, np.concatenate(lengths))
    mean = mean_of_estimates([result.mean for result in results.values()])
    best = mean_of_estimates([result.best for result in results.values()])
    return Evaluation(
        {**{task: result.mean.mean for task, result in results.items()}, "mean": mean.mean},
        {task: result.length for task, result in results.items()},
        {
            **{task: result.detail() for task, result in results.items()},
            "mean": _summary(mean, best),
        },
        {task: result.item_rewards for task, result in results.items()},
    )


class _TaskResult:
    """Statistics of all responses to the items of one task."""

    def __init__(self, items: int, rewards: Rewards, lengths: npt.NDArray[Any]) -> None:
        self._rewards = rewards
        self._generations = len(lengths) // items if items else 1
        self._groups = np.arange(items).repeat(self._generations)
        self.length = float(lengths.mean()) if items else math.nan
        self.mean = mean_estimate(rewards.reward, self._groups)
        of_items = rewards.reward.reshape(items, self._generations)
        self.item_rewards = [_mean_of_present(of_item) for of_item in of_items]
        self.best = self._best_of(self._generations)

    def detail(self) -> dict[str, Any]:
        """Return the statistics for :attr:`Evaluation.detail`."""
        powers = [2**power for power in range(self._generations.bit_length())]
        counts = sorted({*powers, self._generations})
        components = self._rewards.columns()
        del components["reward"]
        return {
            **_summary(self.mean, self.best),
            "generations": self._generations,
            "best_of": {str(k): self._best_of(k).mean for k in counts},
            **{name: _mean_of_present(values) for name, values in components.items()},
        }

    def _best_of(self, k: int) -> Estimate:
        return best_of(self._rewards.reward, self._groups, k)


def _summary(mean: Estimate, best: Estimate) -> dict[str, Any]:
    low, high = mean.interval()
    return {"items": mean.prompts, "low": low, "high": high, "best": best.mean}


def _mean_of_present(values: npt.NDArray[np.floating[Any]]) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan
