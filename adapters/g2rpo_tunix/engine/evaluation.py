"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tunix.rl.rl_cluster import Mode

from g2rpo.run.answers import Answers, Sample
from g2rpo.run.description import RunDescription
from g2rpo.run.display import Display
from g2rpo.run.errors import RunError
from g2rpo.run.evaluation import SAMPLING_SEED, Evaluation, evaluated, sampling_temperature
from g2rpo.run.records import heldout_records, with_tasks
from g2rpo.run.scorer import Scorer
from g2rpo.run.supported import refuse_unsupported

from ..seeds import seed_of
from .cluster import holds_actor, make_cluster, make_mesh
from .options import SUPPORTED
from .policy import load_policy
from .prompts import longest_prompt


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
        As for :func:`~g2rpo_tunix.engine.policy.load_policy`, or a checkpoint of the run with this
        description: it holds weights alone, and ``model.name`` says of what.
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
    checkpoint = Path(model) if holds_actor(Path(model)) else None
    if checkpoint and description.model.name == model:
        raise RunError(
            f"--model is {model!r}, a checkpoint that holds weights alone; name the folder of its "
            "run, which says of what model"
        )
    mesh = make_mesh(description.model.device)
    start = description.model.name if checkpoint else model
    policy = load_policy(start, mesh, description.model.dtype)
    longest = longest_prompt(description, policy, steps=0)
    cluster = make_cluster(description, policy, mesh, longest, checkpoint)
    with (
        Scorer(description) as scorer,
        display.phase("held-out items", len(data.tasks) * data.eval_items) as advance,
    ):
        evaluation = evaluate_policy(
            cluster, description, scorer, advance=advance, on_samples=on_samples
        )
    return evaluation._asdict()


def evaluate_policy(
    cluster: Any,
    description: RunDescription,
    scorer: Scorer,
    *,
    advance: Callable[[int], None] = lambda items: None,
    on_samples: Callable[[list[Sample]], None] | None = None,
) -> Evaluation:
    """Sample answers to the held-out items of every task and score them.

    Parameters
    ----------
    cluster : RLCluster
        Whose rollout is sampled, at ``data.eval_temperature``, by default that of the rollouts.
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
    answers = {
        task: _answers(cluster, description, scorer, number, task)
        for number, task in enumerate(description.data.tasks)
    }
    return evaluated(answers, advance, on_samples)


def _answers(
    cluster: Any, description: RunDescription, scorer: Scorer, number: int, task: str
) -> Iterator[Answers]:
    data = description.data
    records = heldout_records(data, task)
    size, each = min(data.eval_batch_size, data.eval_items), data.eval_generations
    pad, end = cluster.rollout.pad_id(), cluster.rollout.eos_id()
    for start in range(0, len(records), size):
        part = records[start : start + size]
        # The last part is filled up: another shape would be compiled for it alone.
        filled = [*part, *[part[0]] * (size - len(part))]
        prompts = [record["problem"] for record in filled for _ in range(each)]
        config = cluster.get_rollout_config(mode=Mode.EVAL)
        config.seed = seed_of(SAMPLING_SEED, number, start)
        config.temperature = sampling_temperature(description)
        output = cluster.generate(prompts, mode=Mode.EVAL)
        texts, tokens = output.text[: len(part) * each], output.tokens[: len(part) * each]
        lengths = np.asarray([np.count_nonzero(row != pad) for row in tokens])
        ended = np.asarray([end in row for row in tokens])
        rewards = scorer(part, texts, dtype=np.float64)
        yield Answers(start, part, texts, rewards, lengths, ended)
