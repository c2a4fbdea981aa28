"""The same responses and rewards give the same advantages and gradients here and in the trainer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.evidence.policies import Batch, batch_loss
from benchmarks.evidence.simulator import Setting, State, advantages
from benchmarks.evidence.world import TASKS, Rollouts
from g2rpo_trainer import tasks as built_in
from g2rpo_trainer.batch import Batch as TrainerBatch
from g2rpo_trainer.config import load_config
from g2rpo_trainer.equity import gradient_norms
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.optimizer import trained_parameters
from g2rpo_trainer.policy.build import build_model, build_processor
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.scoring import Rewards
from tests.trainer.parts import learner_of, shaping_of

SIZE, PROMPTS = 4, 2
ROWS = len(TASKS) * PROMPTS * SIZE
SHAPE = (1, len(TASKS) * PROMPTS, SIZE)
# Both have the same six tasks, in the same order.
LABELS = np.repeat(np.arange(len(TASKS)), PROMPTS * SIZE)
TARGETS = "{" + ", ".join(f"{task.name}: {list(task.target)}" for task in TASKS) + "}"

#: One setting in the words of both.
PAIRS = {
    "gaussian": (Setting(), []),
    "no stage, mean by task": (
        Setting(options={"task_stage": None}, loss={"aggregation": "task"}),
        ["estimator.task_stage=null", "optimization.aggregation=task"],
    ),
    "grpo, entropy": (
        Setting(estimator="grpo", entropy_weight=0.5),
        ["estimator.name=grpo", "entropy.weight=0.5"],
    ),
    "length term, sapo": (
        Setting(length="term", length_weight=0.7, loss={"loss_type": "sapo"}),
        ["length.mode=term", "length.weight=0.7", "optimization.loss_type=sapo"],
    ),
    "ema-grpo, length in the reward": (
        Setting(estimator="ema-grpo", length="reward"),
        ["estimator.name=ema-grpo", "length.mode=reward", "length.weight=0.3"],
    ),
}


@pytest.fixture(scope="module")
def policy():
    processor = build_processor()
    return make_policy(build_model(processor.tokenizer, seed=0).eval(), processor)


@pytest.fixture(scope="module")
def sampled(policy):
    """Responses of the built-in policy, without skill, to two prompts of every task."""
    by_name = dict(built_in.TASKS)
    records = [by_name[task.name].item(0, n).record for task in TASKS for n in range(PROMPTS)]
    prompts = encode_prompts(policy, records)
    torch.manual_seed(0)
    return prompts, sample(policy, prompts, num_generations=SIZE, max_completion_length=12)


def flattened(weights, gradients):
    """Return gradients as one vector, 0 where a weight has none."""
    pairs = zip(weights, gradients, strict=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in pairs]
    )


@pytest.mark.parametrize("name", PAIRS)
def test_advantages_and_gradients_agree(name, policy, sampled):
    setting, settings = replace(PAIRS[name][0], group_size=SIZE), PAIRS[name][1]
    prompts, found = sampled
    config = load_config(
        settings=[
            "length.mode=off",
            "entropy.weight=0",
            f"length.targets={TARGETS}",
            "output.equity_steps=1",
            f"output.equity_prompts={PROMPTS}",
            *settings,
        ]
    )
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 3, ROWS).astype(np.float32) / 2
    mask = found.mask.numpy()

    shaped = shaping_of(config)(
        Rewards(rewards, rewards, rewards, rewards), mask.sum(axis=1), SIZE, LABELS
    )
    tokens = found.tokens.numpy().reshape(*SHAPE, -1)
    rollouts = Rollouts(tokens, mask.reshape(*SHAPE, -1), np.zeros(SHAPE))
    own, of_length = advantages(
        setting, rewards.astype(np.float64).reshape(SHAPE), rollouts, State.start(setting, 1)
    )
    np.testing.assert_allclose(own.reshape(-1), shaped.policy, atol=2e-6)
    assert np.abs(own).max() > 0.5
    if of_length is not None:
        np.testing.assert_allclose(of_length.reshape(-1), shaped.length, atol=2e-6)

    batch = TrainerBatch(
        prompts=prompts,
        groups=torch.arange(ROWS) // SIZE,
        tokens=found.tokens,
        mask=found.mask,
        logprobs=found.logprobs,
        entropies=found.entropies,
        advantages=torch.as_tensor(shaped.policy),
        length_advantages=None if shaped.length is None else torch.as_tensor(shaped.length),
        tasks=torch.as_tensor(LABELS),
        task_names=config.data.tasks,
    )
    weights = [weight for _, weight in trained_parameters(policy)]
    for weight in weights:
        weight.grad = None
    learner = learner_of(policy, config)
    learner.accumulate_gradients(batch, learner.totals(batch))
    of_trainer = flattened(weights, [weight.grad for weight in weights])

    logprobs, entropies = completion_logprobs(
        policy, prompts, batch.groups, batch.tokens, batch.mask
    )
    simulated = Batch(rollouts.tokens, rollouts.mask, own, of_length)
    penalised = np.full((1, len(TASKS)), setting.entropy_weight) if setting.entropy_weight else None

    def gradient(kept):
        loss = batch_loss(setting.objective, kept, logprobs, batch.logprobs, entropies, penalised)
        parts = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return flattened(weights, parts)

    torch.testing.assert_close(gradient(simulated), of_trainer, rtol=1e-3, atol=1e-6)
    assert of_trainer.norm() > 1e-2

    if penalised is not None:  # the entropy of the other tasks would stay in a task's gradient
        return
    norms = gradient_norms(learner, batch, config.output, 1).norms
    for number, task in enumerate(TASKS):
        mine = (number == LABELS).reshape(SHAPE)
        alone = Batch(
            simulated.tokens,
            simulated.mask,
            own * mine,
            None if of_length is None else of_length * mine,
        )
        assert norms[task.name] == pytest.approx(float(gradient(alone).norm()), rel=1e-3)
