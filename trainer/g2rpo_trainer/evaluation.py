"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from g2rpo_trainer.answers import Answers, Sample
from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.data import Source, open_run
from g2rpo_trainer.record import Record
from g2rpo_trainer.run.display import Display
from g2rpo_trainer.run.evaluation import SAMPLING_SEED, Evaluation, evaluated, sampling_temperature
from g2rpo_trainer.scoring import Rewards, Scorer

from .distributed.processes import Processes, joined
from .inputs.chat import opened_text, whole_responses
from .inputs.prompts import encode_prompts, prompt_fault
from .model.loading import load_described
from .model.policy_model import Policy
from .passes.shortcuts import find_shortcuts
from .sampling import sample


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
        Its model, data, rollout and rewards sections.
    display : Display, optional
        Shows the progress.
    source : Source, optional
        Of the records, if :func:`g2rpo_trainer.data.open_run` has opened it already.
    on_samples : callable, optional
        As in :func:`evaluate_policy`.

    Returns
    -------
    dict
        ``{"reward": {task: mean, …, "mean": …}, "length": {task: mean tokens}, "detail": …}``, as
        :class:`~g2rpo_trainer.run.evaluation.Evaluation` says.
    """
    config, source = open_run(config, source)
    data = config.data
    display = display or Display(0, data.tasks)
    with joined(), Scorer(config, source) as scorer:
        policy = load_described(config, model)
        if data.skip_broken:
            source.refuse(partial(prompt_fault, policy))
        with display.phase("held-out items", len(data.tasks) * data.eval_items) as advance:
            evaluation = evaluate_policy(
                policy, config, source, scorer, advance=advance, on_samples=on_samples
            )
    return evaluation._asdict()


def evaluate_policy(
    policy: Policy,
    config: TrainConfig,
    source: Source,
    scorer: Scorer,
    *,
    advance: Callable[[int], None] = lambda items: None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> Evaluation:
    """Sample answers to the held-out items of every task and score them.

    Parameters
    ----------
    policy : Policy
        Whose model is sampled, at ``data.eval_temperature``, by default that of the rollouts.
    config : TrainConfig
        Its data and rollout sections.
    source : Source
        Of the held-out items.
    scorer : Scorer
        Says what responses are worth.
    advance : callable
        Called with the number of items done since its last call.
    on_samples : callable, optional
        Called with every batch of responses, as :meth:`g2rpo_trainer.answers.Answers.samples`
        makes them.

    Returns
    -------
    Evaluation
    """
    is_main = Processes.current().is_main
    with _own_random_numbers(policy.device):
        answers = {
            task: _answers(policy, config, source, scorer, task) for task in config.data.tasks
        }
        return evaluated(answers, advance, on_samples if is_main else None)


def _answers(
    policy: Policy, config: TrainConfig, source: Source, scorer: Scorer, task: str
) -> Iterator[Answers]:
    with Processes.current().together():
        records = source.held_out_records(task, config.data.eval_items)
    # Each process has as many at once as a single one would have.
    size = config.data.eval_batch_size * Processes.current().size
    for start in range(0, len(records), size):
        yield _answered(policy, config, scorer, records[start : start + size], start)


def _answered(
    policy: Policy,
    config: TrainConfig,
    scorer: Scorer,
    records: Sequence[Record],
    first: int,
) -> Answers:
    data, rollout, processes = config.data, config.rollout, Processes.current()
    share = processes.share(len(records))
    asked = [records[number] for number in share.padded]
    with processes.together():
        prompts = encode_prompts(policy, asked)
    if processes.size > 1:
        find_shortcuts(policy, prompts)
    completions = sample(
        policy,
        prompts,
        num_generations=data.eval_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=sampling_temperature(config),
        limits=[rollout.limit_of(record.task) for record in asked],
        stop=rollout.stop,
        batch_size=rollout.batch_size,
        share=share,
    )
    own_records = asked[: len(share.own)]
    opened = [opened_text(policy, record) for record in records]
    whole = whole_responses([opened[number] for number in share.own], completions.texts)
    with processes.together():
        own = scorer(own_records, whole, dtype=np.float64)
    numbers = torch.tensor(share.own, dtype=torch.int64).repeat_interleave(data.eval_generations)
    rewards_of_own = map(torch.from_numpy, own.columns().values())
    columns = (completions.lengths.cpu(), completions.ended.cpu(), *rewards_of_own)
    gathered, _ = processes.gather(numbers, *columns)
    lengths, ended, *rewards = (column.numpy() for column in gathered)
    texts = processes.gather_rows(numbers.tolist(), whole)
    return Answers(first, records, texts, Rewards(*rewards), lengths, ended, opened)


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SAMPLING_SEED)
        yield
