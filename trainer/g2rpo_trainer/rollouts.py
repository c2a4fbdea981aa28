"""Rollouts of a step: prompts, sampled responses and their rewards, with dynamic sampling.

Where all responses to a prompt get the same reward, none of them has an advantage, and the update
learns nothing from the prompt. *Dynamic sampling* (DAPO, arXiv:2503.14476) replaces such prompts by
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

import g2rpo
from g2rpo_trainer.config import DynamicSampling, TrainConfig
from g2rpo_trainer.data import Source
from g2rpo_trainer.metrics import Outcomes, Stopwatch
from g2rpo_trainer.record import Record
from g2rpo_trainer.scoring import Rewards, Scorer

from .distributed import Ranks
from .inputs.chat import opened_text, whole_responses
from .inputs.prompts import Inputs, encode_prompts, select_rows
from .model.policy_model import Policy
from .sampling import Completions, Sampler, concatenated

Labels = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rollouts:
    """P prompts of a step, with n scored responses to each.

    Attributes
    ----------
    records : list of Record
        The prompts, in the order in which they were drawn.
    texts : list of str
        N = P · n responses of all ranks, those of one prompt next to each other. A text begins with
        the part of the answer format that its prompt ends with.
    opened : list of str
        That part of each prompt, P texts.
    outcomes : Outcomes
        Lengths and entropies of what was sampled of the N responses, and whether they ended.
    rewards : Rewards
        Rewards of the N responses.
    keeps : array (P,), bool
        True at the prompts that the step learns from.
    tries : int
        Number of times that prompts were drawn.
    own : array (M,), int64
        Numbers of the responses that this rank has sampled.
    completions : Completions
        The M responses of this rank.
    prompts : dict of str to Tensor
        Model inputs of those of this rank's prompts that are kept.
    """

    records: list[Record]
    texts: list[str]
    opened: list[str]
    outcomes: Outcomes
    rewards: Rewards
    keeps: Flags
    tries: int
    own: Labels
    completions: Completions
    prompts: Inputs

    @property
    def groups(self) -> Labels:
        """Prompt of each response, (N,) int64."""
        count = len(self.records)
        return np.arange(count).repeat(len(self.texts) // count)

    def tasks(self, names: Sequence[str]) -> Labels:
        """Return the number of each response's task, (N,) int64."""
        return np.asarray([names.index(one.task) for one in self.records])[self.groups]

    @property
    def kept(self) -> Labels:
        """Numbers of the responses that the step learns from, int64."""
        return np.flatnonzero(self.keeps[self.groups])

    def metrics(self, names: Sequence[str]) -> dict[str, float]:
        """Return the numbers of drawn and dropped prompts, the latter also by task."""
        dropped = [one.task for one in self.records]
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
    config: TrainConfig,
    source: Source,
    position: int,
    watch: Stopwatch,
    ranks: Ranks = Ranks(),
) -> Rollouts:
    """Sample and score responses to prompts, until as many prompts as a step has are kept.

    Parameters
    ----------
    policy : Policy
        Policy to sample.
    sampler : Sampler
        Samples the responses.
    scorer : Scorer
        Computes their rewards.
    config : TrainConfig
        Its rollout section, and its seed.
    source : Source
        Of the prompts.
    position : int
        Number of prompts that the run has drawn before.
    watch : Stopwatch
        Measures the times of ``rollout`` and ``scoring``.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    Rollouts
        Rollouts of all prompts drawn. Fewer than a step's prompts are kept, or none, where
        ``rollout.dynamic_sampling.max_tries`` were not enough.
    """
    options = config.rollout
    records: list[Record] = []
    opened: list[str] = []
    parts: list[_Part] = []
    missing = options.prompts_per_step
    while missing and len(parts) < options.dynamic_sampling.max_tries:
        with watch.part("rollout"):
            with ranks.raise_on_all_ranks():
                drawn = source.training_records(
                    seed=config.seed, position=position + len(records), prompts=missing
                )
                share = ranks.share(len(drawn))
                asked = [drawn[number] for number in share.padded]
                own = asked[: len(share.own)]
                prompts = encode_prompts(policy, asked)
            completions = sampler(policy, prompts, asked, options, share)
            starts = [opened_text(policy, record) for record in drawn]
            texts = whole_responses([starts[number] for number in share.own], completions.texts)
            completions = replace(completions, texts=texts)
        with watch.part("scoring"), ranks.raise_on_all_ranks():
            rewards = scorer(own, completions.texts)
        counted = rewards
        if config.optimization.mask_truncated_completions == "all":
            counted = rewards.without(~completions.ended.cpu().numpy())
        keeps = prompts_to_keep(counted, len(own), options.dynamic_sampling)
        numbers = [len(records) + number for number in share.own]
        parts.append(_Part(numbers, prompts, completions, rewards, keeps))
        records += drawn
        opened += starts
        missing -= ranks.sum(int(keeps.sum()))
    with watch.part("rollout"):
        return _joined(policy, records, opened, parts, options.num_generations, ranks)


@dataclass(frozen=True)
class _Part:
    """Rollouts of this rank in one try; its prompts are the first of ``prompts``."""

    numbers: list[int]
    prompts: Inputs
    completions: Completions
    rewards: Rewards
    keeps: Flags


def prompts_to_keep(rewards: Rewards, prompts: int, options: DynamicSampling) -> Flags:
    """Return which prompts a step learns from, (prompts,) bool.

    Parameters
    ----------
    rewards : Rewards
        Rewards of N responses, those of one prompt next to each other; NaN is no reward.
    prompts : int
        Number of prompts.
    options : DynamicSampling
        Mode and band.
    """
    if options.mode == "off" or not prompts:
        return np.ones(prompts, dtype=bool)
    if options.mode == "signal":
        size = len(rewards.reward) // prompts
        found: Flags = g2rpo.has_signal(rewards.reward, size)[::size]
        return found
    table = rewards.accuracy.reshape(prompts, -1)
    counts = (~np.isnan(table)).sum(-1)
    # Without any accuracy there is no mean, and none lies in the band.
    mean = np.where(counts > 0, np.nansum(table, -1) / np.maximum(counts, 1), np.nan)
    return (mean > options.band[0]) & (mean < options.band[1])


def _joined(
    policy: Policy,
    records: list[Record],
    opened: list[str],
    parts: Sequence[_Part],
    num_generations: int,
    ranks: Ranks,
) -> Rollouts:
    """Return the rollouts of all tries, with what is reported of those of all ranks."""
    numbers = torch.tensor([n for part in parts for n in part.numbers], dtype=torch.int64)
    keeps = np.concatenate([part.keeps for part in parts])
    completions = concatenated([part.completions for part in parts])
    rows = numbers.repeat_interleave(num_generations)
    with ranks.raise_on_all_ranks():
        prompts = _kept_prompts(policy, records, parts, numbers[torch.from_numpy(keeps)])
    rewards = zip(*(part.rewards.columns().values() for part in parts), strict=True)
    columns = [
        torch.from_numpy(keeps.repeat(num_generations)),
        completions.lengths.cpu(),
        completions.ended.cpu(),
        completions.entropies.sum(-1).cpu(),
        *(torch.from_numpy(np.concatenate(column)) for column in rewards),
    ]
    # Every number of a rollout that other ranks need travels here, once.
    gathered, own = ranks.gather_sorted(rows, *columns)
    keeps_rows, lengths, ended, entropies, *rewards_of_all = (each.numpy() for each in gathered)
    return Rollouts(
        records=records,
        texts=ranks.gather_sorted_objects(rows.tolist(), completions.texts),
        opened=opened,
        outcomes=Outcomes(lengths, ended, entropies),
        rewards=Rewards(*rewards_of_all),
        keeps=keeps_rows[::num_generations],
        tries=len(parts),
        own=own.numpy(),
        completions=completions,
        prompts=prompts,
    )


def _kept_prompts(
    policy: Policy, records: list[Record], parts: Sequence[_Part], numbers: torch.Tensor
) -> Inputs:
    if len(parts) > 1 and len(numbers):
        # Batches of different lengths, and some with images: put together anew.
        return encode_prompts(policy, [records[number] for number in numbers])
    prompts, kept = parts[0].prompts, torch.from_numpy(parts[0].keeps).nonzero()[:, 0]
    if len(kept) == len(prompts["input_ids"]):
        return prompts
    return select_rows(prompts, kept.to(policy.device))
