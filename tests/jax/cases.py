"""One case or more for each public function of the core: a call, and inputs of any batch size.

A call takes the core and arrays of a library, and
returns a tree of arrays. Inputs are without ties and away from kinks, where libraries may choose
different subgradients, unless the function is about them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from g2rpo.advantages import takes_lengths

TASKS = 3
CORRECTIONS = (("token", "truncate"), ("sequence", "mask"), ("geometric", "reject"))


@dataclass(frozen=True)
class Case:
    """How to call one public function.

    Attributes
    ----------
    name : str
        Of the function.
    call : callable
        ``call(module, *arrays)``.
    inputs : callable
        ``inputs(rng, n)``: arrays, each n long, float64 where floating.
    by : tuple of int
        Inputs that the gradient is taken by.
    is_traceable : bool
        Whether it is for the inside of a compiled step.
    """

    name: str
    call: Callable[..., Any]
    inputs: Callable[[np.random.Generator, int], list[np.ndarray]]
    by: tuple[int, ...] = ()
    is_traceable: bool = True


def rollouts(rng, n):
    """Rewards with an outlier, and labels of groups and tasks."""
    groups = rng.permutation(np.arange(n) // 4)
    return [np.exp(rng.standard_normal(n)), groups, groups % TASKS]


def components(rng, n):
    _, groups, tasks = rollouts(rng, n)
    return [rng.standard_normal((n, 2)), groups, tasks]


def lengths(rng, n):
    """Lengths, which responses are right, and tasks."""
    return [rng.permutation(10 * n)[:n] + 0.25, rng.random(n) < 0.7, rng.integers(0, TASKS, n)]


def tokens(rng, n):
    """Log-probabilities, old ones, advantages, mask, entropies, tasks, length advantages."""
    old = -np.abs(rng.standard_normal((n, 6))) - 0.1
    return [
        old + 0.2 * rng.standard_normal((n, 6)),
        old,
        rng.standard_normal(n),
        rng.random((n, 6)) < 0.7,
        np.abs(rng.standard_normal((n, 6))),
        rng.integers(0, TASKS, n),
        rng.standard_normal(n),
    ]


def logits(rng, n):
    values = 3 * rng.standard_normal((n, 2, 7))
    values[0, 0, 3] = -np.inf
    return [values]


def probs(rng, n):
    values = rng.random((n, 7)) + 0.05
    return [values / values.sum(1, keepdims=True)]


def task_entropies(rng, n):
    """Mean entropies of n tasks, their bands, weights, and which are present."""
    low = rng.random(n)
    return [3 * rng.random(n), low, low + 0.5, 0.3 + 0.1 * rng.random(n), rng.random(n) < 0.8]


def _loss(g, logprobs, old, advantages, mask, entropies, tasks, length, low, high, **options):
    totals = g.batch_totals(mask, entropies=entropies, tasks=tasks, num_tasks=TASKS)
    return g.g2rpo_loss(
        logprobs,
        old,
        advantages,
        mask,
        entropies=entropies,
        tasks=tasks,
        num_tasks=TASKS,
        entropy_low=low,
        entropy_high=high,
        length_advantages=length,
        ref_logprobs=old,
        beta=0.1,
        totals=totals,
        **options,
    )


def _loss_inputs(rng, n):
    return [*tokens(rng, n), np.asarray([0.1, 0.9, 0.2]), np.asarray([0.4, np.inf, 9.0])]


def _selected(mask, values):
    return array_namespace(values).where(mask, values, 0.0)


def _state_of(g, rewards, groups, tasks, means):
    state = g.EMAState(means, means * means, means > 0)
    return g.ema_grpo_advantages(rewards, groups, tasks, state, outliers="group")


def _target_of_each(g, lengths, right, tasks):
    of_task = {"a": g.LengthTarget(5, 20, 60, 90), "b": g.LengthTarget(30, 90, 120, 220)}
    table = g.LengthTargets(of_task).table("abc")
    targets = array_namespace(lengths).asarray(table, dtype=lengths.dtype)
    return g.length_reward(lengths, targets[tasks], right=right)


def _from_json(g, rewards):
    """Go through JSON and back, on the host."""
    start = g.EMAState.start(TASKS, rewards)
    return g.EMAState.from_json(start.to_json(), rewards)


def _diagnostics(g, rewards, groups, tasks):
    return {
        "equity": g.diagnostics.equity(rewards),
        "influence": g.diagnostics.outlier_influence(
            g.ESTIMATORS["grpo"], rewards, groups, tasks, magnitude=10.0
        ),
        "normality": g.diagnostics.normality(rewards, tasks),
        "shares": g.diagnostics.squared_shares(rewards, tasks),
    }


def _cases() -> list[Case]:
    r, t = (0,), (0, 4)
    cases = [
        Case("match_gaussian", lambda g, v, s, _: g.match_gaussian(v, s), rollouts, r),
        Case("gaussian_advantages", lambda g, *a: g.gaussian_advantages(*a), rollouts, r),
        Case(
            "gaussian_advantages",
            lambda g, *a: g.gaussian_advantages(
                *a, task_stage="match", component_weights=[0.9, 0.1], decoupled=True
            ),
            components,
            r,
        ),
        Case("grpo_advantages", lambda g, v, s, _: g.grpo_advantages(v, s), rollouts, r),
        Case("rloo_advantages", lambda g, v, s, _: g.rloo_advantages(v, s), rollouts, r),
        Case(
            "gdpo_advantages",
            lambda g, v, s, _: g.gdpo_advantages(v, s, component_weights=[0.7, 0.3]),
            components,
            r,
        ),
        *(
            Case(
                "reinforce_plus_plus_advantages",
                lambda g, v, s, _, b=b: g.reinforce_plus_plus_advantages(v, s, group_baseline=b),
                rollouts,
                r,
            )
            for b in (False, True)
        ),
        Case(
            "opo_advantages",
            lambda g, v, s, lengths: g.opo_advantages(v, s, lengths=lengths),
            lambda rng, n: [*rollouts(rng, n)[:2], rng.integers(1, 90, n)],
            r,
        ),
        Case(
            "pass_at_k_advantages",
            lambda g, v, s, _: g.pass_at_k_advantages(v, s, k=2, threshold=1.0),
            rollouts,
            r,
        ),
        Case(
            "weigh_tasks",
            lambda g, v, _, tasks, weights: g.weigh_tasks(v, tasks, weights),
            lambda rng, n: [*rollouts(rng, n), np.asarray([0.5, 2.0])],
            (0, 3),
        ),
        Case(
            "ema_grpo_advantages",
            _state_of,
            lambda rng, n: [*rollouts(rng, n), np.asarray([0.5, 0.0, 1.5])],
            (0, 3),
        ),
        Case(
            "length_reward",
            lambda g, x, right, tasks: g.length_reward(x, g.LengthTarget(5, 20, 60, 90)),
            lengths,
            r,
        ),
        Case("length_reward", _target_of_each, lengths, r),
        Case("length_quantiles", lambda g, *a: g.length_quantiles(*a, num_tasks=TASKS), lengths, r),
        Case(
            "calibrate_lengths",
            lambda g, x, right, tasks, old: g.calibrate_lengths(
                old, x, right, tasks, min_samples=2, max_change=0.3
            ),
            lambda rng, n: [*lengths(rng, n), np.asarray([[3.0, 20, 50, np.inf]] * TASKS)],
            (0, 3),
        ),
        Case("entropy_from_logits", lambda g, x: g.entropy_from_logits(x), logits, r),
        Case("entropy_from_probs", lambda g, x: g.entropy_from_probs(x), probs, r),
        Case(
            "task_means",
            lambda g, *a: g.task_means(a[4], a[3], a[5], TASKS),
            tokens,
            (4,),
        ),
        Case(
            "batch_totals",
            lambda g, *a: g.batch_totals(a[3], entropies=a[4], tasks=a[5], num_tasks=TASKS),
            tokens,
            (4,),
        ),
        Case(
            "entropy_penalty",
            lambda g, h, low, high, _, present: g.entropy_penalty(h, low, high, present),
            task_entropies,
            (0, 1, 2),
        ),
        Case(
            "adapt_entropy_weights",
            lambda g, h, low, high, w, present: g.adapt_entropy_weights(w, h, low, high, present),
            task_entropies,
            (0, 1, 2, 3),
        ),
        Case(
            "adapt_task_weights",
            lambda g, h, low, high, w, present: g.adapt_task_weights(h, w, present=present),
            task_entropies,
            (0, 3),
        ),
        Case(
            "high_entropy_mask",
            lambda g, *a: _selected(g.high_entropy_mask(a[4], a[3], a[5], share=0.3), a[4]),
            tokens,
            (4,),
        ),
        *(
            Case(
                "sampler_weights",
                lambda g, *a, k=level, m=mode: g.sampler_weights(
                    a[0], a[1], a[3], level=k, mode=m, low=0.8, high=1.3
                ),
                tokens,
                r,
            )
            for level, mode in (
                ("token", "truncate"),
                ("sequence", "mask"),
                ("geometric", "reject"),
            )
        ),
        Case(
            "off_policy_mask",
            lambda g, *a: _selected(g.off_policy_mask(*a[:4], threshold=0.05), a[4]),
            tokens,
            (4,),
        ),
        *(
            Case("kl_penalty", lambda g, a, b, *_, k=kind: g.kl_penalty(a, b, kind=k), tokens, r)
            for kind in ("k1", "k2", "k3", "k1+", "k3+", "k3-weighted")
        ),
        *(
            Case("g2rpo_loss", lambda g, *a, k=kind: _loss(g, *a, loss_type=k), _loss_inputs, t)
            for kind in ("ppo", "grpo", "dapo", "gspo", "cispo", "sapo")
        ),
        *(
            Case(
                "policy_loss",
                lambda g, *a, k=kind: g.policy_loss(
                    *a[:4],
                    aggregation=k,
                    max_completion_length=9 if k == "constant" else None,
                    importance_weights=a[4],
                    tasks=a[5],
                    num_tasks=TASKS,
                    task_weights=a[4][:TASKS, 0],
                ),
                tokens,
                r,
            )
            for kind in ("token", "sequence", "constant", "task")
        ),
    ]
    host = [
        Case("has_signal", lambda g, v, s, _: g.has_signal(v, s), rollouts, (), False),
        Case("EMAState", lambda g, r, *_: _from_json(g, r), rollouts, (), False),
        Case("diagnostics", _diagnostics, rollouts, (), False),
    ]
    return cases + host


CASES = _cases()


def estimator_case(name: str) -> Case:
    """Return the case of an entry of ``ESTIMATORS``, with task weights."""

    def call(g, rewards, groups, tasks, lengths, weights):
        options = {"lengths": lengths} if takes_lengths(g.ESTIMATORS[name]) else {}
        return g.ESTIMATORS[name](rewards, groups, tasks, task_weights=weights, **options)

    def inputs(rng, n):
        return [*rollouts(rng, n), rng.integers(1, 90, n), np.asarray([0.5, 1.0, 2.0])]

    return Case(name, call, inputs, (0,))
