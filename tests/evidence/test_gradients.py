"""The gradient that moves the simulated policies is that of the core's loss, seed by seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import g2rpo
from benchmarks.evidence.policies import (
    Batch,
    Objective,
    Policies,
    loss_gradient,
    task_gradients,
    weight_gradient,
)
from benchmarks.evidence.world import FEATURES, LONGEST, TASKS, TOKENS, World

SEEDS = range(3)
COUNT, SIZE = 2, 4
PROMPTS = len(TASKS) * COUNT
OF_ROW = np.repeat(np.arange(len(TASKS)), COUNT * SIZE)


@pytest.fixture(scope="module")
def world():
    return World(SEEDS)


@pytest.fixture(scope="module")
def policies():
    rng = np.random.default_rng(0)
    return Policies(rng.normal(size=(len(SEEDS), LONGEST * TOKENS, FEATURES)))


@pytest.fixture(scope="module")
def prompts(world):
    return world.prompts("test", 0, COUNT)


@pytest.fixture(scope="module")
def batch(world, policies, prompts):
    rollouts = world.sample("test", 0, policies.logits(prompts.features), prompts, SIZE)
    rng = np.random.default_rng(1)
    shape = (len(SEEDS), PROMPTS, SIZE)
    return Batch(rollouts.tokens, rollouts.mask, rng.normal(size=shape), rng.normal(size=shape))


def token_values(logits, tokens, temperature):
    """Return log-probabilities and entropies (P G, T) of one seed."""
    logs = torch.log_softmax(torch.as_tensor(logits) / temperature, dim=-1)
    rows = logs.repeat_interleave(SIZE, dim=0)
    chosen = rows.gather(-1, torch.as_tensor(tokens).reshape(-1, LONGEST, 1))[..., 0]
    return chosen, -(rows.exp() * rows).sum(dim=-1)


def loss_of_seed(objective, logits, batch, seed, entropy_weights=None, old=None):
    """Return the loss of one seed alone, as a user would call it."""
    logprobs, entropies = token_values(logits, batch.tokens[seed], objective.temperature)
    extra = {}
    if entropy_weights is not None:
        extra = {
            "entropies": -logprobs if objective.entropy_estimate == "sampled" else entropies,
            "entropy_low": torch.full((len(TASKS),), objective.entropy_low).double(),
            "entropy_high": torch.full((len(TASKS),), objective.entropy_high).double(),
            "entropy_weight": torch.as_tensor(entropy_weights[seed]),
        }
    terms, _ = g2rpo.g2rpo_loss(
        logprobs,
        old[seed],
        torch.as_tensor(batch.advantages[seed]).reshape(-1),
        torch.as_tensor(batch.mask[seed]).reshape(-1, LONGEST),
        tasks=torch.as_tensor(OF_ROW),
        num_tasks=len(TASKS),
        length_advantages=torch.as_tensor(batch.length_advantages[seed]).reshape(-1),
        length_weight=objective.length_weight,
        **objective.loss,
        **extra,
    )
    return terms.total


def check(objective, policies, prompts, batch, entropy_weights=None, old=None):
    """Compare with automatic differentiation of the loss of each seed, and with differences.

    CISPO's ratio is a constant to differentiation, which differences do not see.
    """
    logits = policies.logits(prompts.features)
    if old is None:
        old = [
            token_values(each, batch.tokens[s], objective.temperature)[0]
            for s, each in enumerate(logits)
        ]
    found = loss_gradient(objective, logits, batch, entropy_weights, torch.cat(old))
    rng = np.random.default_rng(2)
    for seed in range(len(SEEDS)):
        given = (batch, seed, entropy_weights, old)
        leaf = torch.from_numpy(logits[seed].copy()).requires_grad_()
        loss_of_seed(objective, leaf, *given).backward()
        own = found.by_logits[seed]
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=1e-9, atol=1e-13)
        assert np.abs(own).max() > 1e-5
        if objective.loss.get("loss_type") == "cispo":
            continue
        direction = rng.normal(size=own.shape)
        up, down = (
            float(loss_of_seed(objective, logits[seed] + h * direction, *given))
            for h in (1e-6, -1e-6)
        )
        assert (up - down) / 2e-6 == pytest.approx((own * direction).sum(), rel=1e-5, abs=1e-8)


LOSSES = [
    {"aggregation": "token"},
    {"aggregation": "sequence"},
    {"aggregation": "task"},
    {"aggregation": "constant", "max_completion_length": LONGEST},
    {"loss_type": "grpo"},
    {"loss_type": "dapo"},
    {"loss_type": "dr-grpo", "max_completion_length": LONGEST},
    {"loss_type": "gspo"},
    {"loss_type": "cispo"},
    {"loss_type": "sapo"},
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradient_is_that_of_the_loss_of_each_seed_alone(loss, policies, prompts, batch):
    check(Objective(loss, length_weight=0.7), policies, prompts, batch)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_gradient_off_policy(loss, policies, prompts, batch):
    rng = np.random.default_rng(3)
    logits = policies.logits(prompts.features)
    old = [
        token_values(each + 0.3 * rng.normal(size=each.shape), batch.tokens[s], 1.0)[0]
        for s, each in enumerate(logits)
    ]
    if loss.get("loss_type") == "gspo":
        loss = {**loss, "epsilon": 0.5, "epsilon_high": 0.5}  # its own clip leaves nearly nothing
    check(Objective(loss), policies, prompts, batch, old=old)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("estimate", ["exact", "sampled"])
def test_gradient_of_the_entropy_term(estimate, temperature, policies, prompts, batch):
    objective = Objective({}, temperature, 0.0, 0.7, 0.8, estimate)
    weights = np.random.default_rng(4).uniform(0.1, 1, (len(SEEDS), len(TASKS)))
    check(objective, policies, prompts, batch, weights)


def test_entropy_term_is_there(policies, prompts, batch):
    weights = np.ones((len(SEEDS), len(TASKS)))
    logits = policies.logits(prompts.features)
    objective = Objective({}, entropy_low=0.0, entropy_high=0.1)
    still = replace(batch, advantages=0 * batch.advantages, length_advantages=None)
    assert np.abs(loss_gradient(objective, logits, still, weights).by_logits).max() > 1e-3
    assert np.abs(loss_gradient(objective, logits, still).by_logits).max() == 0


def test_entropy_is_that_of_the_tasks_tokens(policies, prompts, batch):
    logits = policies.logits(prompts.features)
    found = loss_gradient(Objective({}), logits, batch)
    for seed in range(len(SEEDS)):
        _, entropies = token_values(logits[seed], batch.tokens[seed], 1.0)
        expected, _ = g2rpo.task_means(
            entropies.numpy(), batch.mask[seed].reshape(-1, LONGEST), OF_ROW, len(TASKS)
        )
        np.testing.assert_allclose(found.entropy[seed], expected, rtol=1e-12)


def test_task_gradients_add_up_to_the_gradient_by_the_weights(policies, prompts, batch):
    logits = policies.logits(prompts.features)
    by_logits = loss_gradient(Objective({}), logits, batch).by_logits
    whole = weight_gradient(by_logits, prompts.features)
    parts = task_gradients(by_logits, prompts.features)
    np.testing.assert_allclose(parts.sum(axis=1), whole, atol=1e-12)
    # The logits are linear in the weights, so this is the whole chain rule.
    moved = Policies(policies.weights + 1e-3 * whole).logits(prompts.features)
    np.testing.assert_allclose(
        ((moved - logits) * by_logits).sum(), 1e-3 * (whole**2).sum(), rtol=1e-8
    )
