"""Held-out rewards: the same items and the same random numbers before and after a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tunix.rl.rl_cluster import Mode

from g2rpo.run.description import RunDescription
from g2rpo.run.evaluation import Answers, Evaluation, summarised
from g2rpo.run.records import heldout_records
from g2rpo.run.scorer import Scorer

from ..seeds import seed_of
from .prompts import question

_SAMPLING_SEED = 260_408_539
_PROMPTS_AT_ONCE = 64


def evaluate_policy(
    cluster: Any,
    description: RunDescription,
    scorer: Scorer,
    *,
    advance: Callable[[int], None] = lambda items: None,
) -> Evaluation:
    """Sample answers to the held-out items of every task and score them.

    Parameters
    ----------
    cluster : RLCluster
        Whose rollout is sampled, at the run's temperature.
    description : RunDescription
        Its data section.
    scorer : Scorer
        Says what responses are worth.
    advance : callable
        Called with the number of items done since its last call.

    Returns
    -------
    Evaluation
    """
    return summarised(
        {
            task: list(_answers(cluster, description, scorer, number, task, advance))
            for number, task in enumerate(description.data.tasks)
        }
    )


def _answers(
    cluster: Any,
    description: RunDescription,
    scorer: Scorer,
    number: int,
    task: str,
    advance: Callable[[int], None],
) -> Iterator[Answers]:
    data = description.data
    records = heldout_records(data, task)
    size, each = min(_PROMPTS_AT_ONCE, data.eval_items), data.eval_generations
    for start in range(0, len(records), size):
        part = records[start : start + size]
        # The last part is filled up: another shape would be compiled for it alone.
        filled = [*part, *[part[0]] * (size - len(part))]
        prompts = [question(record) for record in filled for _ in range(each)]
        config = cluster.get_rollout_config(mode=Mode.EVAL)
        config.seed = seed_of(_SAMPLING_SEED, number, start)
        output = cluster.generate(prompts, mode=Mode.EVAL)
        count, pad = len(part) * each, cluster.rollout.pad_id()
        lengths = [int(np.count_nonzero(tokens != pad)) for tokens in output.tokens[:count]]
        yield Answers(len(part), scorer(part, output.text[:count]), np.asarray(lengths))
        advance(len(part))
