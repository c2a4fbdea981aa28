"""One optimiser step on made-up advantages, for tests that need no run."""

from __future__ import annotations

import torch

from g2rpo_trainer.batch import Batch
from g2rpo_trainer.config import load_config
from g2rpo_trainer.optimizer import make_optimizer
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample

from .parts import learner_of
from .tiny_models import make_records


def describe(*settings):
    return load_config(
        settings=[
            "data.tasks=[ocr, maths]",
            "rollout.prompts_per_step=4",
            "rollout.num_generations=3",
            "rollout.max_completion_length=6",
            "length.mode=off",
            "optimization.learning_rate=0.01",
            # So that weights change by their gradients alone.
            "optimization.weight_decay=0",
            *settings,
        ]
    )


def rollouts(policy, family):
    """Return a batch of twelve responses with made-up advantages."""
    return rollouts_to(policy, encode_prompts(policy, make_records(family)))


def rollouts_to(policy, prompts):
    """Return the same for four prompts of one's own."""
    torch.manual_seed(0)
    found = sample(policy, prompts, num_generations=3, max_completion_length=6)
    return Batch(
        prompts=prompts,
        groups=torch.arange(4).repeat_interleave(3),
        tokens=found.tokens,
        mask=found.mask,
        logprobs=found.logprobs,
        entropies=found.entropies,
        advantages=torch.tensor([1.0, -1.0, 0.0]).repeat(4),
        length_advantages=None,
        tasks=torch.arange(2).repeat(2).repeat_interleave(3),
        task_names=["ocr", "maths"],
    )


def learn_once(policy, family, *settings):
    """Take one optimiser step, and return its metrics."""
    return learn_from(policy, rollouts(policy, family), *settings)


def learn_from(policy, batch, *settings):
    """Take the step with a batch of one's own."""
    config = describe("optimization.micro_batch_tokens=700", *settings)
    optimizer = make_optimizer(policy, config.optimization)
    return learner_of(policy, config, optimizer).update(batch, Progress())
