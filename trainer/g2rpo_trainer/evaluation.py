"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from g2rpo.estimates import Estimate, best_of, mean_estimate, mean_of_estimates
from g2rpo_trainer.answers import Answers, Sample
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source, open_run
from g2rpo_trainer.record import Record
from g2rpo_trainer.report.display import Display
from g2rpo_trainer.scoring import Rewards, Scorer

from .distributed import Ranks, join_ranks
from .inputs.chat import opened_text, whole_responses
from .inputs.prompts import encode_prompts, prompt_fault
from .model.loading import load_described
from .model.policy_model import Policy
from .sampling import sample
from .shortcuts import choose_shortcuts

# Of every evaluation, so that models compare.
_SAMPLING_SEED = 260_408_539
# Stands for a temperature of 0, by which logits cannot be divided: the most probable token wins.
_GREEDY = 1e-6


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
        """Number of items behind each mean reward."""
        return {task: of["items"] for task, of in self.detail.items()}

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


def evaluate(
    model: str,
    config: TrainConfig,
    display: Display | None = None,
    *,
    source: Source | None = None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> dict[str, Any]:
    """Load a model and evaluate it on the held-out items.

    Parameters
    ----------
    model : str
        ``"builtin"``, a folder or a hub id.
    config : TrainConfig
        With the sections model, data, rollout and rewards.
    display : Display, optional
        Shows the progress.
    source : Source, optional
        Source of the records, if :func:`g2rpo_trainer.data.open_run` has opened it already.
    on_samples : callable, optional
        As in :func:`evaluate_policy`.

    Returns
    -------
    dict
        ``{"reward": {task: mean, …, "mean": …}, "length": {task: mean tokens}, "detail": …}``, the
        attributes of :class:`Evaluation`.
    """
    config, source = open_run(config, source)
    data = config.data
    display = display or Display(0, data.tasks)
    with join_ranks() as ranks, Scorer(config, source) as scorer:
        policy = load_described(config, model, ranks=ranks)
        if data.skip_broken:
            source.refuse(partial(prompt_fault, policy))
        if data.eval_generations > 1:  # a single response shares its prompt with none
            policy = choose_shortcuts(
                policy, config.rollout.shared_prompts, seed=config.seed, ranks=ranks
            )
        with display.phase("held-out items", len(data.tasks) * data.eval_items) as advance:
            evaluation = evaluate_policy(
                policy,
                config,
                source,
                scorer,
                advance=advance,
                on_samples=on_samples,
                ranks=ranks,
            )
    return asdict(evaluation)


def evaluate_policy(
    policy: Policy,
    config: TrainConfig,
    source: Source,
    scorer: Scorer,
    *,
    advance: Callable[[int], None] = lambda items: None,
    on_samples: Callable[[list[Sample]], None] | None = None,
    ranks: Ranks = Ranks(),
) -> Evaluation:
    """Sample answers to the held-out items of every task and score them.

    Parameters
    ----------
    policy : Policy
        Policy to sample, at ``data.eval_temperature``, by default the temperature of the rollouts.
    config : TrainConfig
        With the sections data and rollout; its tasks are named.
    source : Source
        Source of the held-out items.
    scorer : Scorer
        Scores the responses.
    advance : callable
        Called with the number of items done since its last call.
    on_samples : callable, optional
        Called with every batch of responses, as `Answers.samples` returns them.
    ranks : Ranks
        Ranks that evaluate together.

    Returns
    -------
    Evaluation
    """
    with _own_random_numbers(policy.device):
        answers = {
            task: _answers(policy, config, source, scorer, task, ranks)
            for task in config.data.tasks
        }
        return evaluated(answers, advance, on_samples if ranks.is_main else None)


def _answers(
    policy: Policy, config: TrainConfig, source: Source, scorer: Scorer, task: str, ranks: Ranks
) -> Iterator[Answers]:
    """Yield the answers to the held-out items of a task, batch by batch."""
    with ranks.raise_on_all_ranks():
        records = source.held_out_records(task, config.data.eval_items)
    # Each rank has as many at once as a single one would have.
    size = config.data.eval_batch_size * ranks.size
    for start in range(0, len(records), size):
        yield _answered(policy, config, scorer, records[start : start + size], start, ranks)


def _answered(
    policy: Policy,
    config: TrainConfig,
    scorer: Scorer,
    records: Sequence[Record],
    first: int,
    ranks: Ranks,
) -> Answers:
    """Sample and score answers to one batch of items, divided over the ranks."""
    data, rollout = config.data, config.rollout
    share = ranks.share(len(records))
    asked = [records[number] for number in share.padded]
    with ranks.raise_on_all_ranks():
        prompts = encode_prompts(policy, asked)
    temperature = rollout.temperature if data.eval_temperature is None else data.eval_temperature
    completions = sample(
        policy,
        prompts,
        num_generations=data.eval_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=max(temperature, _GREEDY),
        limits=[rollout.limit_of(record.task) for record in asked],
        stop=rollout.stop,
        batch_size=rollout.batch_size,
        share=share,
    )
    own_records = asked[: len(share.own)]
    opened = [opened_text(policy, record) for record in records]
    whole = whole_responses([opened[number] for number in share.own], completions.texts)
    with ranks.raise_on_all_ranks():
        own = scorer(own_records, whole, dtype=np.float64)
    numbers = torch.tensor(share.own, dtype=torch.int64).repeat_interleave(data.eval_generations)
    rewards_of_own = map(torch.from_numpy, own.columns().values())
    columns = (completions.lengths.cpu(), completions.ended.cpu(), *rewards_of_own)
    gathered, _ = ranks.gather_sorted(numbers, *columns)
    lengths, ended, *rewards = (column.numpy() for column in gathered)
    texts = ranks.gather_sorted_objects(numbers.tolist(), whole)
    return Answers(first, records, texts, Rewards(*rewards), lengths, ended, opened)


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SAMPLING_SEED)
        yield


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
    )


class _TaskResult:
    """Statistics of all responses to the items of one task."""

    def __init__(self, items: int, rewards: Rewards, lengths: npt.NDArray[Any]) -> None:
        self._rewards = rewards
        self._generations = len(lengths) // items if items else 1
        self._groups = np.arange(items).repeat(self._generations)
        self.length = float(lengths.mean()) if items else math.nan
        self.mean = mean_estimate(rewards.reward, self._groups)
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
