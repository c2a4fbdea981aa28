"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.evaluation import Answers, Evaluation, summarised
from g2rpo.run.records import heldout_records, with_tasks
from g2rpo.run.scorer import Scorer

from .device import resolve_device
from .policy_model import Policy, load_policy
from .prompts import encode_prompts
from .rollout import sample

_SAMPLING_SEED = 260_408_539

# So cold that the most probable token is drawn for certain, which a temperature of 0 asks for.
_GREEDY = 1e-6


def evaluate(
    model: str, description: RunDescription, display: Display | None = None
) -> dict[str, Any]:
    """Load a model and evaluate it on the held-out items.

    Parameters
    ----------
    model : str
        ``"builtin"`` or a folder.
    description : RunDescription
        Its model, data, rollout and rewards sections.
    display : Display, optional
        Shows the progress.

    Returns
    -------
    dict
        ``{"reward": {task: mean, …, "mean": …}, "length": {task: mean tokens}, "detail": …}``, as
        :class:`~g2rpo.run.evaluation.Evaluation` says.
    """
    description = with_tasks(description)
    data = description.data
    display = display or Display(0, data.tasks)
    policy = load_policy(model, resolve_device(description.model.device))
    with (
        Scorer(description) as scorer,
        display.phase("held-out items", len(data.tasks) * data.eval_items) as advance,
    ):
        return evaluate_policy(policy, description, scorer, advance=advance)._asdict()


def evaluate_policy(
    policy: Policy,
    description: RunDescription,
    scorer: Scorer,
    *,
    advance: Callable[[int], None] = lambda items: None,
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

    Returns
    -------
    Evaluation
    """
    answers = {}
    for number, task in enumerate(description.data.tasks):
        key = jax.random.fold_in(jax.random.key(_SAMPLING_SEED), number)
        answers[task] = list(_answers(policy, description, scorer, task, key, advance))
    return summarised(answers)


def _answers(
    policy: Policy,
    description: RunDescription,
    scorer: Scorer,
    task: str,
    key: jax.Array,
    advance: Callable[[int], None],
) -> Iterator[Answers]:
    data, rollout = description.data, description.rollout
    records = heldout_records(data, task)
    size = min(data.eval_batch_size, data.eval_items)
    temperature = rollout.temperature if data.eval_temperature is None else data.eval_temperature
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
            temperature=max(temperature, _GREEDY),
            limits=[limit] * size,
        )
        count = len(part) * data.eval_generations
        rewards = scorer(part, completions.texts(policy)[:count])
        yield Answers(len(part), rewards, completions.lengths()[:count])
        advance(len(part))
