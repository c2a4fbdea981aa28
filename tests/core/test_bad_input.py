"""Errors name the argument, what it was, and what it must be."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

import g2rpo

R, G = np.ones(4), np.zeros(4, dtype=int)
T = np.zeros((2, 3))
M = np.ones((2, 3), dtype=bool)
A = np.ones(2)

CASES = [
    (
        g2rpo.sampler_weights,
        (T, T[:, :2], M),
        {},
        ValueError,
        "sampler_logprobs must have shape (2, 3), got (2, 2)",
    ),
    (
        g2rpo.sampler_weights,
        (T, T, M),
        {"level": "response"},
        ValueError,
        "level must be one of 'token', 'sequence', 'geometric', got 'response'",
    ),
    (
        g2rpo.off_policy_mask,
        (T, T, A[:1], M),
        {"threshold": 0.5},
        ValueError,
        "advantages must have shape (2,) or (2, 3), got (1,)",
    ),
    (
        g2rpo.off_policy_mask,
        (T, T, A, M),
        {"threshold": 0.0},
        ValueError,
        "threshold must be finite and positive, got 0.0",
    ),
    (
        g2rpo.high_entropy_mask,
        (M, M),
        {"share": 0.5},
        TypeError,
        "entropies must be real floating point, got dtype bool",
    ),
    (
        g2rpo.high_entropy_mask,
        (T, M, A),
        {"share": 0.5},
        TypeError,
        "tasks must hold integer labels, got dtype float64",
    ),
    (
        g2rpo.adapt_task_weights,
        (A, R),
        {},
        ValueError,
        "weights must have shape (2,), got (4,)",
    ),
    (g2rpo.match_gaussian, ([1.0, 2.0],), {}, TypeError, "values must be an array"),
    (g2rpo.match_gaussian, (R, [0, 0, 1, 1]), {}, TypeError, "segments must be an array"),
    (g2rpo.match_gaussian, (R * 1j,), {}, TypeError, "values must be real, got dtype complex128"),
    (g2rpo.match_gaussian, (T,), {}, ValueError, "values must have shape (N,), got (2, 3)"),
    (g2rpo.match_gaussian, (R, G[:3]), {}, ValueError, "segments must have shape (4,), got (3,)"),
    (
        g2rpo.match_gaussian,
        (R, R),
        {},
        TypeError,
        "segments must hold integer labels, got dtype float64",
    ),
    (
        g2rpo.match_gaussian,
        (R, G),
        {"ties": "max"},
        ValueError,
        "ties must be one of 'midpoint', 'barycentre', got 'max'",
    ),
    (
        g2rpo.match_gaussian,
        (R,),
        {"resolution": -1},
        ValueError,
        "resolution must be finite and positive, got -1",
    ),
    (
        g2rpo.match_gaussian,
        (torch.ones(4), G),
        {},
        TypeError,
        "all arrays must be of one library, got values: Tensor, segments: ndarray",
    ),
    (
        g2rpo.gaussian_advantages,
        (R[None, None], G),
        {},
        ValueError,
        "rewards must have shape (N,) or (N, K), got (1, 1, 4)",
    ),
    (
        g2rpo.gaussian_advantages,
        (R, G, G > 0),
        {},
        TypeError,
        "tasks must hold integer labels, got dtype bool",
    ),
    (
        g2rpo.gaussian_advantages,
        (R, G),
        {"task_stage": "z"},
        ValueError,
        "task_stage must be one of 'standardize', 'match', 'match-all', None, got 'z'",
    ),
    (
        g2rpo.gaussian_advantages,
        (R, G),
        {"component_weights": [1.0]},
        ValueError,
        "component_weights need rewards of shape (N, K), got shape (4,)",
    ),
    (
        g2rpo.gaussian_advantages,
        (R[:, None], G),
        {"component_weights": [1.0, 2.0]},
        ValueError,
        "component_weights must have shape (1,), got (2,)",
    ),
    (g2rpo.grpo_advantages, (R, G), {"scale": "z"}, ValueError, "scale must be one of"),
    (
        g2rpo.grpo_advantages,
        (R, G),
        {"epsilon": -1.0},
        ValueError,
        "epsilon must be finite and non-negative, got -1.0",
    ),
    (g2rpo.rloo_advantages, (R, G[:1]), {}, ValueError, "groups must have shape (4,), got (1,)"),
    (g2rpo.gdpo_advantages, (T[0], G), {}, ValueError, "groups must have shape (3,), got (4,)"),
    (
        g2rpo.reinforce_plus_plus_advantages,
        (R, G),
        {"epsilon": math.nan},
        ValueError,
        "epsilon must be finite and non-negative, got nan",
    ),
    (g2rpo.opo_advantages, (R, G), {"lengths": None}, TypeError, "lengths must be an array (N,)"),
    (g2rpo.ESTIMATORS["opo"], (R, G, G), {}, TypeError, "lengths must be an array (N,), the resp"),
    (
        g2rpo.opo_advantages,
        (R, G),
        {"lengths": G[:3]},
        ValueError,
        "lengths must have shape (4,), got (3,)",
    ),
    (
        g2rpo.opo_advantages,
        (R, G),
        {"lengths": R * 1j},
        TypeError,
        "lengths must be real, got dtype complex128",
    ),
    (g2rpo.pass_at_k_advantages, (R, G), {"k": 0}, ValueError, "k must be at least 1, got 0"),
    (g2rpo.pass_at_k_advantages, (R, G), {"k": 2.0}, TypeError, "k must be an int, got float"),
    (
        g2rpo.pass_at_k_advantages,
        (R, G),
        {"threshold": math.inf},
        ValueError,
        "threshold must be finite, got inf",
    ),
    (
        g2rpo.ESTIMATORS["grpo"],
        (R, G),
        {"task_weights": A},
        TypeError,
        "task_weights need tasks: their integer labels",
    ),
    (
        g2rpo.weigh_tasks,
        (R, G, G),
        {},
        TypeError,
        "task_weights must be real floating point, got dtype int64",
    ),
    (g2rpo.weigh_tasks, (R, G, A[:0]), {}, ValueError, "task_weights must have at least one"),
    (
        g2rpo.length_reward,
        (R, T),
        {},
        ValueError,
        "targets must have shape (4,) or (4, 4), got (2, 3)",
    ),
    (g2rpo.length_reward, (R, (1, 2, 3, 4)), {}, TypeError, "targets must be an array"),
    (
        g2rpo.length_reward,
        (R, g2rpo.LengthTarget(1, 2, 3, 4)),
        {"right": G},
        TypeError,
        "right must be boolean, got dtype int64",
    ),
    (
        g2rpo.entropy_from_logits,
        (G,),
        {},
        TypeError,
        "logits must be real floating point, got dtype int64",
    ),
    (
        g2rpo.entropy_from_logits,
        (np.asarray(1.0),),
        {},
        ValueError,
        "logits must have shape (..., V), got ()",
    ),
    (g2rpo.task_means, (T, M, G[:2], 0), {}, ValueError, "num_tasks must be at least 1, got 0"),
    (g2rpo.task_means, (T, M, G[:2], 2.0), {}, TypeError, "num_tasks must be an int, got float"),
    (g2rpo.entropy_penalty, (A, A, R), {}, ValueError, "high must have shape (2,), got (4,)"),
    (
        g2rpo.policy_loss,
        (T, T[:1], A, M),
        {},
        ValueError,
        "old_logprobs must have shape (2, 3), got (1, 3)",
    ),
    (
        g2rpo.policy_loss,
        (T, T, R, M),
        {},
        ValueError,
        "advantages must have shape (2,) or (2, 3), got (4,)",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M * 1j),
        {},
        TypeError,
        "mask must be boolean or hold 0 and 1, got dtype complex128",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"loss_type": "z"},
        ValueError,
        "loss_type must be one of 'ppo', 'grpo', 'dapo', 'dr-grpo', 'gspo', 'cispo', 'sapo', got",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"aggregation": "z"},
        ValueError,
        "aggregation must be one of",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"aggregation": "constant"},
        ValueError,
        'aggregation="constant" needs max_completion_length',
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"max_completion_length": 9},
        ValueError,
        "max_completion_length goes with",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"epsilon": -0.1},
        ValueError,
        "epsilon must be finite and non-negative, got -0.1",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"dual_clip": 0.5},
        ValueError,
        "dual_clip must be at least 1, got 0.5",
    ),
    (g2rpo.policy_loss, (T, T, A, M), {"num_tasks": 2}, TypeError, "num_tasks needs tasks"),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"num_tasks": 2, "tasks": G[:2], "totals": g2rpo.BatchTotals(3, 2, R)},
        ValueError,
        "totals.task_tokens must have shape (2,), got (4,)",
    ),
    (
        g2rpo.g2rpo_loss,
        (T, T, A, M),
        {"num_tasks": 2, "tasks": G[:2], "totals": g2rpo.BatchTotals(3, 2)},
        TypeError,
        "num_tasks needs totals with task_tokens",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"aggregation": "task"},
        TypeError,
        'aggregation="task" needs tasks and num_tasks',
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"task_weights": A},
        TypeError,
        "task_weights need tasks and num_tasks",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"task_weights": R, "tasks": G[:2], "num_tasks": 2},
        ValueError,
        "task_weights must have shape (2,), got (4,)",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"loss_type": "dr-grpo"},
        ValueError,
        "aggregation=\"constant\", which loss_type='dr-grpo' brings, needs max_completion_length",
    ),
    (
        g2rpo.g2rpo_loss,
        (T, T, A, M),
        {"loss_type": "ppo", "temperature_positive": 2.0},
        TypeError,
        "loss_type='ppo' takes epsilon, epsilon_high, dual_clip and no temperature_positive",
    ),
    (
        g2rpo.g2rpo_loss,
        (T, T, A, M),
        {"options": g2rpo.LossOptions("gspo", epsilon=0.1), "loss_type": "sapo"},
        TypeError,
        "takes temperature_positive, temperature_negative and no epsilon",
    ),
    (
        g2rpo.g2rpo_loss,
        (T, T, A, M),
        {"kl_kind": "k2+"},
        ValueError,
        "kl_kind must be one of 'k1', 'k2', 'k3', 'k1+', 'k3+', 'k3-weighted', got 'k2+'",
    ),
    (
        g2rpo.policy_loss,
        (T, T, A, M),
        {"importance_cap": 2.0},
        TypeError,
        "'importance_cap' is no option of the loss",
    ),
    (g2rpo.batch_totals, (M,), {"tasks": G[:2]}, TypeError, "and these need each other"),
    (
        g2rpo.kl_penalty,
        (T, T),
        {"kind": "k4"},
        ValueError,
        "kind must be one of 'k1', 'k2', 'k3', 'k1+', 'k3+', 'k3-weighted', got 'k4'",
    ),
    (
        g2rpo.g2rpo_loss,
        (T, T, A, M),
        {"entropies": T},
        TypeError,
        "entropies need tasks, entropy_low and entropy_high",
    ),
    (
        g2rpo.g2rpo_loss,
        (T, T, A, M),
        {"denominator": 3},
        TypeError,
        "'denominator' is no option of the loss (there are: loss_type, aggregation, epsilon,",
    ),
    (g2rpo.encode_labels, ("ocr",), {}, TypeError, "got the string 'ocr'"),
    (g2rpo.encode_labels, ([1, 2],), {}, TypeError, "labels must be strings, got 1 of int"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), CASES)
def test_a_wrong_argument_is_named_in_the_error(function, arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        function(*arguments, **options)


def test_labels_are_encoded_in_sorted_order():
    codes, names = g2rpo.encode_labels(["b", "a", "b"])
    assert [names[c] for c in codes] == ["b", "a", "b"]
    assert g2rpo.encode_labels([])[0].shape == (0,)
