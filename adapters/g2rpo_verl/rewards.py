"""Rewards for verl: ``reward.custom_reward_function.path=pkg://g2rpo_verl.rewards``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from threading import Lock
from typing import Any

from g2rpo.rewards import RewardPool, Weights

_one_at_a_time = Lock()


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    problem_type: str | None = None,
    weights: Mapping[str, float] | None = None,
    seconds: float = 10.0,
    workers: int = 1,
    functions: Mapping[str, str] | None = None,
    **_: Any,
) -> dict[str, float]:
    """Score a response by the accuracy of its problem type, by its format and its structure.

    Parameters
    ----------
    data_source : str
        The task; for messages.
    solution_str : str
        Everything that the policy wrote.
    ground_truth : str
        The answer.
    extra_info : mapping, optional
        The record's own ``problem_type`` and ``options``.
    problem_type : str, optional
        Of records that name none: a key of :data:`g2rpo.rewards.ACCURACY`.
    weights : mapping, optional
        Weights in the sum, of accuracy, format and structure; the paper's .9, .1 and .5.
    seconds : float
        Most time that one response may take; beyond it, its components are 0.
    workers : int
        Processes that score, for each of verl's reward workers; with 0 there is no time limit.
    functions : mapping, optional
        Problem type -> import path ``module:function`` of a reward of one's own.

    Returns
    -------
    dict
        ``score``, the weighted sum, and ``accuracy``, ``format`` and ``structure``.

    Raises
    ------
    ValueError
        If there is no problem type, it is unknown, or the answer does not fit it; or an import
        path leads nowhere.

    Notes
    -----
    verl passes keyword options from ``reward.custom_reward_function.reward_kwargs``.

    Examples
    --------
    >>> compute_score("maths", "<answer>7</answer>", "7", {"problem_type": "maths"}, workers=0)
    {'score': 0.9, 'accuracy': 1.0, 'format': 0.0, 'structure': 0.0}
    """
    record = dict(extra_info or {})
    record["answer"] = ground_truth
    record["problem_type"] = record.get("problem_type") or problem_type
    place = f"a record of {data_source!r}"
    if not record["problem_type"]:
        raise ValueError(
            f"{place} has no problem_type in extra_info; add it there, or set "
            "reward.custom_reward_function.reward_kwargs.problem_type"
        )
    with _one_at_a_time:
        pool = _pool(workers, seconds, tuple(sorted((functions or {}).items())))
        scored = pool.score([record], [solution_str], places=[place])
    (parts,) = scored.components
    return {"score": parts.total(Weights(**(weights or {}))), **parts._asdict()}


@cache
def _pool(workers: int, seconds: float, functions: tuple[tuple[str, str], ...]) -> RewardPool:
    return RewardPool(workers, seconds=seconds, functions=dict(functions))
