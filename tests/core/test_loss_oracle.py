"""Every loss type, aggregation and KL kind against the papers' formulas, value and gradient."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from g2rpo import LOSSES, LossOptions, g2rpo_loss, policy_loss
from g2rpo._kl import KLKind

from . import loss_oracle

LOSS_TYPES = list(LOSSES)
AGGREGATIONS = ["token", "sequence", "constant", "task", None]
KL_KINDS = list(get_args(KLKind))
LONGEST = 9
TASKS = 4  # of which one has no token and one no response


def make(rng, *, by_token, kind="ppo"):
    """Return a batch with clipped, capped and free tokens of both signs, and an empty response."""
    size, length = 7, 6
    mask = rng.random((size, length)) < 0.7
    mask[3] = False
    old = -np.abs(rng.standard_normal((size, length))) - 0.5
    spread = 1e-3 if kind == "gspo" else 0.7
    logprobs = old + spread * rng.standard_normal((size, length))
    advantages = rng.standard_normal((size, length))
    if not by_token:
        advantages[:] = advantages[:, :1]
    # The first response is out of the clip above, the second below and beyond the dual clip.
    advantages[0], advantages[1] = np.abs(advantages[0]), -np.abs(advantages[1])
    mask[:2] = True
    far = np.asarray([[2.0, 1.5, 0.4, 1.0, 0.5, 0.2], [-0.5, 2.0, -1.0, -0.3, 1.5, 0.1]])
    logprobs[:2] = old[:2] + ([[1e-3], [-1e-3]] if kind == "gspo" else far)
    return {
        "logprobs": logprobs,
        "old": old,
        "ref": logprobs + 0.6 * rng.standard_normal((size, length)),
        "advantages": advantages,
        "mask": mask,
        "weights": np.exp(0.5 * rng.standard_normal((size, length))),
        "tasks": np.asarray([0, 1, 0, 2, 1, 0, 1]),
        "task_weights": np.asarray([0.5, 2.0, 1.0, 3.0]),
    }


def lists(batch):
    return {name: values.tolist() for name, values in batch.items()}


def options_of(aggregation, **options):
    resolved = aggregation or loss_oracle.AGGREGATIONS[options.get("loss_type", "ppo")]
    longest = LONGEST if resolved == "constant" else None
    return LossOptions(aggregation=aggregation, max_completion_length=longest, **options)


def policy_of(convert, batch, logprobs, options):
    return policy_loss(
        logprobs,
        *(convert(batch[name]) for name in ("old", "advantages", "mask")),
        options=options,
        importance_weights=convert(batch["weights"]),
        tasks=convert(batch["tasks"]),
        num_tasks=TASKS,
        task_weights=convert(batch["task_weights"]),
    )[0]


def kl_of(convert, batch, logprobs, options):
    terms, _ = g2rpo_loss(
        logprobs,
        *(convert(batch[name]) for name in ("old", "advantages", "mask")),
        ref_logprobs=convert(batch["ref"]),
        beta=1.0,
        options=options,
        tasks=convert(batch["tasks"]),
        num_tasks=TASKS,
        task_weights=convert(batch["task_weights"]),
    )
    return terms.kl


def gradients(function, batch, options):
    """Return the gradient on PyTorch and, compiled, on JAX; in float64."""
    import jax
    import torch

    leaf = torch.tensor(batch["logprobs"], requires_grad=True)
    function(torch.tensor, batch, leaf, options).backward()
    with jax.enable_x64(True):
        of_jax = jax.jit(
            jax.grad(lambda logprobs: function(jax.numpy.asarray, batch, logprobs, options))
        )
        return leaf.grad.numpy(), np.asarray(of_jax(jax.numpy.asarray(batch["logprobs"])))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_policy_loss_is_that_of_a_loop_over_tokens(library, rng, loss_type, aggregation):
    for by_token in (False, True):
        batch = make(rng, by_token=by_token, kind=loss_type)
        options = options_of(aggregation, loss_type=loss_type)
        found = policy_of(library.array, batch, library.array(batch["logprobs"]), options)
        rounded = {
            name: values.astype(library.dtype) if values.dtype.kind == "f" else values
            for name, values in batch.items()
        }
        expected = loss_oracle.loss(
            loss_oracle.token_objective,
            loss_type,
            lists(rounded),
            aggregation or loss_oracle.AGGREGATIONS[loss_type],
            LONGEST,
            rounded["logprobs"].tolist(),
        )
        assert float(found) == pytest.approx(expected, rel=20 * library.tolerance)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_policy_gradient_is_that_of_finite_differences(rng, loss_type, aggregation, by_token):
    batch = make(rng, by_token=by_token, kind=loss_type)
    expected = loss_oracle.gradient(
        loss_oracle.token_objective,
        loss_type,
        lists(batch),
        aggregation or loss_oracle.AGGREGATIONS[loss_type],
        LONGEST,
        batch["logprobs"].tolist(),
    )
    options = options_of(aggregation, loss_type=loss_type)
    for found in gradients(policy_of, batch, options):
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-7)
    assert np.count_nonzero(expected) > 5
    if LOSSES[loss_type].clipping is not None and loss_type != "cispo":
        assert np.count_nonzero(np.asarray(expected)[batch["mask"]]) < batch["mask"].sum()


@pytest.mark.parametrize("aggregation", AGGREGATIONS[:4])
@pytest.mark.parametrize("kind", KL_KINDS)
def test_the_kl_term_is_that_of_a_loop_over_tokens(library, rng, kind, aggregation):
    batch = make(rng, by_token=False)
    options = options_of(aggregation, kl_kind=kind)
    found = kl_of(library.array, batch, library.array(batch["logprobs"]), options)
    rounded = {
        name: values.astype(library.dtype) if values.dtype.kind == "f" else values
        for name, values in batch.items()
    }
    expected = loss_oracle.loss(
        loss_oracle.token_kl,
        kind,
        lists(rounded),
        aggregation,
        LONGEST,
        rounded["logprobs"].tolist(),
    )
    assert float(found) == pytest.approx(expected, rel=50 * library.tolerance)


@pytest.mark.parametrize("aggregation", AGGREGATIONS[:4])
@pytest.mark.parametrize("kind", KL_KINDS)
def test_the_kl_gradient_is_that_of_finite_differences(rng, kind, aggregation):
    batch = make(rng, by_token=False)
    expected = loss_oracle.gradient(
        loss_oracle.token_kl, kind, lists(batch), aggregation, LONGEST, batch["logprobs"].tolist()
    )
    for found in gradients(kl_of, batch, options_of(aggregation, kl_kind=kind)):
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_defaults_are_those_of_the_papers(loss_type):
    longest = LONGEST if loss_type == "dr-grpo" else None
    found = LossOptions(loss_type, max_completion_length=longest).resolved()
    assert found.aggregation == loss_oracle.AGGREGATIONS[loss_type]
    if loss_type == "sapo":
        assert (found.temperature_positive, found.temperature_negative) == (1.0, 1.05)
        assert found.epsilon is found.epsilon_high is found.dual_clip is None
        return
    low, high, dual, _ = loss_oracle.CLIPS[loss_type]
    assert (found.epsilon, found.epsilon_high) == (low, high)
    assert found.dual_clip == (None if loss_type == "cispo" else dual)
