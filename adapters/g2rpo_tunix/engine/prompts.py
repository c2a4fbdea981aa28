"""A run's records as tunix's dataset, and their rewards as tunix's reward functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from g2rpo.data import PromptRecord
from g2rpo.run.description import RunDescription
from g2rpo.run.errors import RunError
from g2rpo.run.records import heldout_records, source_of, training_records
from g2rpo.run.scorer import Rewards, Scorer
from g2rpo_jax.policy.questions import MAX_PROMPT_LENGTH, Questions

from .policy import Policy

_LENGTH_STEP = 16


class Prompts:
    """The records of every step of a run, as batches of columns.

    Parameters
    ----------
    description : RunDescription
        Its data and rollout sections; the tasks are named.
    start : int
        Steps that are done. tunix asks for their batches and throws them away.
    """

    def __init__(self, description: RunDescription, start: int) -> None:
        self._description, self._start = description, start
        self._records: dict[int, list[PromptRecord]] = {}

    def records(self, step: int) -> list[PromptRecord]:
        """Return the records of a step, from 0."""
        if step not in self._records:
            size = self._description.rollout.prompts_per_step
            found = training_records(
                self._description.data,
                seed=self._description.seed,
                position=step * size,
                prompts=size,
            )
            # Rollouts may be one step ahead of the log.
            self._records = {k: v for k, v in self._records.items() if k >= step - 1}
            self._records[step] = found
        return self._records[step]

    def __iter__(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        size = self._description.rollout.prompts_per_step
        for step in range(self._description.optimization.steps):
            if step < self._start:
                prompts, tasks = [""] * size, [self._description.data.tasks[0]] * size
            else:
                records = self.records(step)
                prompts = [record["problem"] for record in records]
                tasks = [record["task_type"] for record in records]
            yield {
                "prompts": np.asarray(prompts, dtype=np.object_),
                "task": np.asarray(tasks),
                "place": np.arange(step * size, (step + 1) * size),
            }

    def at(self, place: int) -> PromptRecord:
        """Return the record at a place of the run, from 0."""
        step, row = divmod(int(place), self._description.rollout.prompts_per_step)
        return self.records(step)[row]


def longest_prompt(description: RunDescription, policy: Policy, steps: int) -> int:
    """Return the most tokens that a prompt has, of held-out items and so many steps, rounded up.

    Parameters
    ----------
    description : RunDescription
        Its data and rollout sections; the tasks are named. Where ``data.skip_broken`` is set, the
        data leave out from now on what this policy cannot be asked.
    policy : Policy
        Whose tokenizer and context count.
    steps : int
        Of training, from the first.

    Raises
    ------
    RunError
        If a record is more than one question in words, or longer than prompts may be.
    """
    data, size = description.data, description.rollout.prompts_per_step
    questions = Questions(policy.tokenizer.encode, _limit(description, policy), engine="tunix")
    if data.skip_broken:
        source_of(data).refuse(questions.fault)
    records = [record for task in data.tasks for record in heldout_records(data, task)]
    longest = max((len(questions.tokens(record)) for record in records), default=0)
    for step in range(steps):
        records = training_records(data, seed=description.seed, position=step * size, prompts=size)
        longest = max(longest, *(len(questions.tokens(record)) for record in records))
    return -(-longest // _LENGTH_STEP) * _LENGTH_STEP


def _limit(description: RunDescription, policy: Policy) -> int:
    """Return the most tokens that a prompt may have: as described, or what a response leaves."""
    rollout = description.rollout
    if rollout.max_prompt_length is not None:
        return rollout.max_prompt_length
    if policy.context is None:
        return MAX_PROMPT_LENGTH
    if rollout.max_completion_length >= policy.context:
        raise RunError(
            f"rollout.max_completion_length is {rollout.max_completion_length}, but the model's "
            f"context has {policy.context} tokens, prompt included; it must be less"
        )
    return policy.context - rollout.max_completion_length


class Scores:
    """The components of a run's rewards, one tunix reward function each.

    Parameters
    ----------
    scorer : Scorer
        Says what responses are worth.
    prompts : Prompts
        Whose records are answered.
    """

    def __init__(self, scorer: Scorer, prompts: Prompts) -> None:
        self._scorer, self._prompts = scorer, prompts
        self.texts: list[str] = []
        self.rewards: Rewards | None = None

    def functions(self) -> list[Callable[..., Any]]:
        """Return accuracy, format and structure, which tunix calls in this order."""

        def accuracy(completions: Sequence[str], place: Any, **_: Any) -> Any:
            self.rewards = self._score(completions, place)
            return self._component("accuracy")

        def format(**_: Any) -> Any:
            return self._component("format")

        def structure(**_: Any) -> Any:
            return self._component("structure")

        # tunix passes everything by keyword, and looks at the names of parameters.
        return [accuracy, format, structure]

    def _score(self, completions: Sequence[str], place: Any) -> Rewards:
        self.texts = list(completions)
        places = np.asarray(place)
        each = int((places == places[0]).sum())
        records = [self._prompts.at(number) for number in places[::each]]
        return self._scorer(records, self.texts)

    def _component(self, name: str) -> Any:
        if self.rewards is None:
            raise RuntimeError("accuracy must be asked for first")
        # Where scoring failed there is no reward at all, whatever the format.
        values = np.asarray(getattr(self.rewards, name), dtype=np.float64)
        return np.where(np.isnan(self.rewards.reward), np.nan, values)
