"""Parts of a run, put together from its configuration as the loop does."""

from __future__ import annotations

from g2rpo_trainer.advantages import Shaping, shaping_options
from g2rpo_trainer.data import open_source
from g2rpo_trainer.distributed import Ranks
from g2rpo_trainer.evaluation import Evaluator
from g2rpo_trainer.rollouts import Collector
from g2rpo_trainer.sampling import sample_with_policy
from g2rpo_trainer.update import Learner


def shaping_of(config, tasks=None):
    """Return what turns the rewards of a run into advantages."""
    return Shaping(shaping_options(config, tasks or config.data.tasks))


def learner_of(policy, config, optimizer=None, *, tasks=None, reference=None, ranks=Ranks()):
    """Return what updates a policy; without an optimiser it has loss and gradients alone."""
    shaping, optimization = shaping_of(config, tasks), config.optimization
    return Learner(policy, optimizer, shaping, optimization, config.rollout, reference, ranks)


def collector_of(policy, config, scorer, sampler=sample_with_policy, *, source=None, ranks=Ranks()):
    """Return what draws the prompts of a run, by default of its own source."""
    return Collector(
        policy,
        sampler,
        scorer,
        open_source(config.data) if source is None else source,
        config.rollout,
        seed=config.seed,
        is_truncated_absent=config.optimization.mask_truncated_completions == "all",
        ranks=ranks,
    )


def evaluator_of(config, scorer):
    """Return what evaluates a policy on the held-out items of the run's own source."""
    return Evaluator(open_source(config.data), scorer, config.data, config.rollout)
