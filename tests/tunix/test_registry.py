"""tunix's own learner with names of ours, and no class of ours."""

from __future__ import annotations

import numpy as np
import pytest
from tunix.rl.function_registry import get_advantage_estimator, get_policy_loss_fn
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner

import g2rpo
from g2rpo_tunix import G2RPOConfig, register_estimators

from .conftest import GROUP, PROMPTS, batches, letters, make_cluster


@pytest.mark.parametrize("name", sorted(set(g2rpo.ESTIMATORS) - {"opo"}))
def test_every_estimator_is_there(name):
    rewards = np.random.default_rng(0).random(12)
    advantages = get_advantage_estimator(f"g2rpo-{name}")(rewards=rewards, num_generations=4)
    wanted = g2rpo.ESTIMATORS[name](rewards, np.arange(3).repeat(4), None)
    np.testing.assert_array_equal(advantages, wanted)


def test_an_estimator_that_needs_lengths_says_where_they_come_from():
    opo = get_advantage_estimator("g2rpo-opo")
    with pytest.raises(RuntimeError, match="set estimator='opo' in G2RPOConfig"):
        opo(rewards=np.arange(4.0), num_generations=2)


def test_an_estimator_of_ones_own():
    g2rpo.register_estimator("themselves", lambda rewards, groups, tasks=None: rewards)
    try:
        assert "g2rpo-themselves" in register_estimators()
        found = get_advantage_estimator("g2rpo-themselves")
        assert found(rewards=np.arange(2.0), num_generations=2).tolist() == [0, 1]
    finally:
        g2rpo.ESTIMATORS.pop("themselves")


def train(config, data):
    learner = GRPOLearner(make_cluster(steps=1), config, letters)
    seen = []
    update = learner.rl_cluster.update_actor
    learner.rl_cluster.update_actor = lambda examples, *rest: (
        seen.extend(examples),
        update(examples, *rest),
    )
    rewards = []
    compute = learner._compute_rewards
    learner._compute_rewards = lambda **given: rewards.append(compute(**given)) or rewards[-1]
    learner.train(data)
    return rewards[0], np.asarray(seen[0].advantages)


GROUPS = np.arange(PROMPTS).repeat(GROUP)


def test_tunix_learner_and_loss():
    config = GRPOConfig(num_generations=GROUP, beta=0.0, advantage_estimator="g2rpo-gaussian")
    rewards, advantages = train(config, batches(1))
    np.testing.assert_allclose(advantages, g2rpo.gaussian_advantages(rewards, GROUPS), atol=1e-6)


def test_labels_through_the_reward_manager():
    config = GRPOConfig(
        num_generations=GROUP,
        beta=0.0,
        advantage_estimator="g2rpo-gaussian",
        reward_manager="g2rpo",
    )
    data = batches(1)
    rewards, advantages = train(config, data)
    codes, _ = g2rpo.encode_labels(data[0]["task"].repeat(GROUP).tolist())
    wanted = g2rpo.gaussian_advantages(rewards, GROUPS, codes)
    np.testing.assert_allclose(advantages, wanted, atol=1e-6)
    without = g2rpo.gaussian_advantages(rewards, GROUPS)
    assert np.abs(wanted - without).max() > 1e-3


def test_the_loss_needs_no_learner_of_ours():
    config = G2RPOConfig(num_generations=GROUP, entropy_weight=0.0)
    rewards, advantages = train(config, batches(1))
    np.testing.assert_allclose(advantages, g2rpo.gaussian_advantages(rewards, GROUPS), atol=1e-6)


def test_terms_that_need_our_learner_are_refused_without_it():
    with pytest.raises(TypeError, match="need G2RPOLearner"):
        train(G2RPOConfig(num_generations=GROUP), batches(1))
    with pytest.raises(TypeError, match="needs a G2RPOConfig, got GRPOConfig"):
        get_policy_loss_fn("g2rpo")(None, None, GRPOConfig(), 0, 2)


def test_estimators_that_need_our_manager_are_refused_without_it():
    for name in ("g2rpo", "g2rpo-running-scale"):
        with pytest.raises(RuntimeError, match="needs the reward manager"):
            get_advantage_estimator(name)(rewards=np.zeros(4), num_generations=2)
    with pytest.raises(ValueError, match="whole groups of 3, got 4"):
        get_advantage_estimator("g2rpo-gaussian")(rewards=np.zeros(4), num_generations=3)
