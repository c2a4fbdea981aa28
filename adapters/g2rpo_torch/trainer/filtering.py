"""Prompts, responses and rewards of a step; prompts that teach nothing are replaced by others.

Where every response to a prompt gets the same reward, none of them has an advantage: such a prompt
costs a rollout and moves nothing. *Dynamic sampling* (DAPO, arXiv:2503.14476) draws further prompts
in the place of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from g2rpo.run.description import RunDescription
from g2rpo.run.records import training_records
from g2rpo.run.sections.rollout import DynamicSampling
from g2rpo.tasks import Record

from .engine import Sampler
from .policy_model import Policy
from .prompts import Inputs, encode_prompts, select_rows
from .rollout import Completions, concatenated
from .scoring import Rewards, Scorer
from .shortcuts import find_shortcuts
from .stopwatch import Stopwatch


@dataclass(frozen=True)
class Rollouts:
    """The P prompts that a step has drawn, with n scored responses to each.

    Attributes
    ----------
    records : list of Record
        The prompts, in the order in which they were drawn.
    prompts : dict of str to Tensor
        Model inputs of the prompts that are kept.
    completions : Completions
        N = P · n responses, those of one prompt next to each other.
    rewards : Rewards
        Of the responses.
    keeps : Tensor (P,), bool
        Which prompts the step learns from.
    tries : int
        How often prompts were drawn.
    """

    records: list[Record]
    prompts: Inputs
    completions: Completions
    rewards: Rewards
    keeps: torch.Tensor
    tries: int

    @property
    def groups(self) -> torch.Tensor:
        """Prompt of each response, (N,) int64."""
        count = len(self.records)
        return torch.arange(count).repeat_interleave(len(self.completions.texts) // count)

    def tasks(self, names: Sequence[str]) -> torch.Tensor:
        """Return the number of each response's task, (N,) int64."""
        return torch.tensor([names.index(one["task_type"]) for one in self.records])[self.groups]

    @property
    def kept(self) -> torch.Tensor:
        """Numbers of the responses that the step learns from, int64."""
        return self.keeps[self.groups].nonzero()[:, 0]

    def metrics(self, names: Sequence[str]) -> dict[str, float]:
        """Return what dynamic sampling did, also task by task."""
        dropped = [one["task_type"] for one in self.records]
        dropped = [task for task, keep in zip(dropped, self.keeps, strict=True) if not keep]
        return {
            "sampling/tries": float(self.tries),
            "sampling/drawn": float(len(self.records)),
            "sampling/dropped": float(len(dropped)),
            **{f"sampling/dropped/{task}": float(dropped.count(task)) for task in names},
        }


def draw_rollouts(
    policy: Policy,
    sampler: Sampler,
    scorer: Scorer,
    description: RunDescription,
    position: int,
    watch: Stopwatch,
) -> Rollouts:
    """Sample and score responses to prompts, until as many prompts as a step has are kept.

    Parameters
    ----------
    policy : Policy
        Whose model is sampled.
    sampler : Sampler
        Samples it.
    scorer : Scorer
        Says what responses are worth.
    description : RunDescription
        Its data and rollout sections.
    position : int
        Prompts that the run has drawn before.
    watch : Stopwatch
        Counts the time of ``rollout`` and ``scoring``.

    Returns
    -------
    Rollouts
        Of all prompts drawn. Fewer than a step has are kept, or none, where
        ``rollout.dynamic_sampling.max_tries`` were not enough.
    """
    options = description.rollout
    parts: list[Rollouts] = []
    missing = options.prompts_per_step
    while missing and len(parts) < options.dynamic_sampling.max_tries:
        records = training_records(
            description.data, seed=description.seed, position=position, prompts=missing
        )
        with watch.part("rollout"):
            prompts = encode_prompts(policy, records)
            find_shortcuts(policy, prompts)
            completions = sampler(policy, prompts, records, options)
        with watch.part("scoring"):
            rewards = scorer(records, completions.texts)
        keeps = prompts_to_keep(rewards, len(records), options.dynamic_sampling)
        parts.append(Rollouts(list(records), prompts, completions, rewards, keeps, tries=1))
        position += len(records)
        missing -= int(keeps.sum())
    with watch.part("rollout"):
        return _joined(policy, parts)


def prompts_to_keep(rewards: Rewards, prompts: int, options: DynamicSampling) -> torch.Tensor:
    """Return which prompts a step learns from, (prompts,) bool.

    Parameters
    ----------
    rewards : Rewards
        N scored responses, those of one prompt next to each other; a NaN is no reward.
    prompts : int
        How many there are.
    options : DynamicSampling
        What is dropped.
    """
    if options.mode == "off":
        return torch.ones(prompts, dtype=torch.bool)
    if options.mode == "signal":
        table = rewards.reward.view(prompts, -1)
        lowest = table.nan_to_num(nan=torch.inf, posinf=torch.inf).amin(-1)
        # Also where nothing has a reward: then the highest is below the lowest.
        return table.nan_to_num(nan=-torch.inf, neginf=-torch.inf).amax(-1) > lowest
    mean = rewards.accuracy.view(prompts, -1).nanmean(-1)
    return (mean > options.band[0]) & (mean < options.band[1])


def _joined(policy: Policy, parts: Sequence[Rollouts]) -> Rollouts:
    records = [record for part in parts for record in part.records]
    keeps = torch.cat([part.keeps for part in parts])
    rewards = Rewards(*map(torch.cat, zip(*(part.rewards for part in parts), strict=True)))
    completions = concatenated([part.completions for part in parts])
    if len(parts) == 1:
        kept = keeps.nonzero()[:, 0].to(policy.device)
        prompts = (
            select_rows(parts[0].prompts, kept) if len(kept) < len(keeps) else parts[0].prompts
        )
    else:
        # Batches of different lengths, and some with images: put together anew.
        chosen = [record for record, keep in zip(records, keeps, strict=True) if keep]
        prompts = encode_prompts(policy, chosen) if chosen else {}
    return Rollouts(records, prompts, completions, rewards, keeps, len(parts))
