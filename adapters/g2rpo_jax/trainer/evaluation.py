"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from g2rpo.run.answers import Answers, Sample
from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import SAMPLING_SEED, Evaluation, evaluated, sampling_temperature
from g2rpo.run.records import heldout_records, with_tasks
from g2rpo.run.scorer import Scorer
from g2rpo.run.supported import refuse_unsupported

from .loading import load_described
from .options import SUPPORTED
from .policy_model import Policy
from .prompts import encode_prompts
from .rollout import sample


def evaluate(
    model: str,
    description: RunDescription,
    display: Display | None = None,
    *,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> dict[str, Any]:
    """Load a model and evaluate it on the held-out items.

    Parameters
    ----------
    model : str
        ``"builtin"`` or a folder, such as a checkpoint.
    description : RunDescription
        Its model, data, rollout and rewards sections.
    display : Display, optional
        Shows the progress.
    on_samples : callable, optional
        As in :func:`evaluate_policy`.

    Returns
    -------
    dict
        ``{"reward": {task: mean, …, "mean": …}, "length": {task: mean tokens}, "detail": …}``, as
        :class:`~g2rpo.run.evaluation.Evaluation` says.

    Raises
    ------
    RunError
        If the model cannot be loaded, or the description asks for what this engine does not do.
    """
    refuse_unsupported(description, SUPPORTED)
    description = with_tasks(description)
    data = description.data
    display = display or Display(0, data.tasks)
    policy = load_described(description, model)
    with (
        Scorer(description) as scorer,
        display.phase("held-out items", len(data.tasks) * data.eval_items) as advance,
    ):
        evaluation = evaluate_policy(
            policy, description, scorer, advance=advance, on_samples=on_samples
        )
    return evaluation._asdict()


def evaluate_policy(
    policy: Policy,
    description: RunDescription,
    scorer: Scorer,
    *,
    advance: Callable[[int], None] = lambda items: None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> Evaluation:
    """Sample answers to the held-out items of every task and score them.

    Parameters
    ----------
    policy : Policy
        Whose decoder is sampled, at ``data.eval_temperature``, by default that of the rollouts.
    description : RunDescription
        Its data and rollout sections.
    scorer : Scorer
        Says what responses are worth.
    advance : callable
        Called with the number of items done since its last call.
    on_samples : callable, optional
        Called with every batch of responses, as :meth:`g2rpo.run.answers.Answers.samples`
        makes them.

    Returns
    -------
    Evaluation
    """
    answers = {}
    for number, task in enumerate(description.data.tasks):
        key = jax.random.fold_in(jax.random.key(SAMPLING_SEED), number)
        answers[task] = _answers(policy, description, scorer, task, key)
    return evaluated(answers, advance, on_samples)


def _answers(
    policy: Policy, description: RunDescription, scorer: Scorer, task: str, key: jax.Array
) -> Iterator[Answers]:
    data, rollout = description.data, description.rollout
    records = heldout_records(data, task)
    size = min(data.eval_batch_size, data.eval_items)
    limit = rollout.limit_of(task)
    for start in range(0, len(records), size):
        part = records[start : start + size]
        # The last part is filled up: another shape would be compiled for it alone.
        filled = [*part, *[part[0]] * (size - len(part))]
        completions = sample(
            policy,
            encode_prompts(policy, filled),
            jax.random.fold_in(key, start),
            num_generations=data.eval_generations,
            max_completion_length=rollout.max_completion_length,
            temperature=sampling_temperature(description),
            limits=[limit] * size,
        )
        count = len(part) * data.eval_generations
        texts, ended = completions.texts(policy)[:count], np.asarray(completions.ended).reshape(-1)
        rewards = scorer(part, texts, dtype=np.float64)
        lengths = completions.lengths()[:count]
        yield Answers(start, part, texts, rewards, lengths, ended[:count])
