"""Rollouts of a step: prompts, sampled responses and their rewards, with dynamic sampling.

If all responses to a prompt get the same reward, none of them has an advantage, and the update
learns nothing from the prompt. *Dynamic sampling* (DAPO, arXiv:2503.14476) replaces such prompts by
others.

Each rank reads and encodes its own prompts only. Their questions, and the texts, lengths and
rewards of the responses, are gathered once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

import g2rpo
from g2rpo_trainer.config import DynamicSampling, Rollout
from g2rpo_trainer.data import Slot, Source
from g2rpo_trainer.metrics import Stopwatch
from g2rpo_trainer.scoring import Floats, Rewards, Scorer

from .distributed import Ranks, Share
from .model.policy_model import Policy
from .prompts.ahead import PromptReader
from .prompts.batching import Inputs, select_rows
from .prompts.chat import whole_responses
from .prompts.encoding import Prompt, join_prompts
from .sampling import Completions, Sampler, concatenated

Labels = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rollouts:
    """P prompts of a step, with n scored responses to each.

    Arrays and lists are of all N = P · n responses, those of one prompt next to each other. Tensors
    are of the M responses that this rank has sampled.

    Attributes
    ----------
    problems : list of str
        Questions of the P prompts, in the order in which they were drawn.
    opened : list of str
        Part of the answer format that each of the P prompts ends with.
    prompt_tasks : array (P,), int64
        Task number of each prompt.
    task_names : sequence of str
        Names of the tasks of the run.
    keeps : array (P,), bool
        True at the prompts that the step learns from.
    tries : int
        Number of times that prompts were drawn.
    texts : list of str
        The N responses, each with the ``opened`` part of its prompt in front.
    lengths : array (N,), int64
        Sampled tokens.
    ended : array (N,), bool
        False where the response was cut off at its length limit.
    total_entropies : array (N,)
        Entropy in nats, summed over the tokens.
    rewards : Rewards
        Rewards of the N responses.
    own : array (M,), int64
        Numbers of this rank's responses among the N.
    prompts : dict of str to Tensor
        Model inputs of this rank's prompts that are kept.
    tokens, mask, logprobs, entropies : Tensor (M, T)
        As sampled, see :class:`~g2rpo_trainer.sampling.Completions`.
    sampler_logprobs : Tensor (M, T) or None
        Log-probabilities under the sampler, if that was not the policy itself.
    """

    problems: list[str]
    opened: list[str]
    prompt_tasks: Labels
    task_names: Sequence[str]
    keeps: Flags
    tries: int
    texts: list[str]
    lengths: Labels
    ended: Flags
    total_entropies: Floats
    rewards: Rewards
    own: Labels
    prompts: Inputs
    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    sampler_logprobs: torch.Tensor | None

    @property
    def num_generations(self) -> int:
        """Responses to each prompt."""
        return len(self.texts) // len(self.problems)

    @property
    def groups(self) -> Labels:
        """Prompt of each response, (N,) int64."""
        return np.arange(len(self.problems)).repeat(self.num_generations)

    @property
    def tasks(self) -> Labels:
        """Task number of each response, (N,) int64."""
        return self.prompt_tasks.repeat(self.num_generations)

    @property
    def kept(self) -> Labels:
        """Numbers of the responses that the step learns from, int64."""
        return np.flatnonzero(self.keeps.repeat(self.num_generations))

    def metrics(self) -> dict[str, float]:
        """Return the numbers of drawn and dropped prompts, the latter also by task."""
        dropped = np.bincount(self.prompt_tasks[~self.keeps], minlength=len(self.task_names))
        by_task = zip(self.task_names, dropped.tolist(), strict=True)
        return {
            "sampling/tries": float(self.tries),
            "sampling/drawn": float(len(self.problems)),
            "sampling/dropped": float(dropped.sum()),
            **{f"sampling/dropped/{task}": float(count) for task, count in by_task},
        }


@dataclass(frozen=True)
class _Try:
    """Prompts of all ranks that were drawn together, and this rank's rollouts of its share."""

    slots: list[Slot]
    share: Share
    own: list[Prompt]
    prompts: Inputs  # those of `share.padded`, of which `own` are the first
    completions: Completions
    rewards: Rewards
    keeps: Flags


@dataclass(frozen=True)
class Collector:
    """Draws the prompts of a run, and has responses to them sampled and scored.

    Attributes
    ----------
    policy : Policy
        Policy to sample.
    sampler : Sampler
        Samples the responses.
    scorer : Scorer
        Computes their rewards.
    source : Source
        Source of the prompts.
    options : Rollout
        Number of prompts, sampling, dynamic sampling.
    seed : int
        Seed of the run.
    is_truncated_absent : bool
        Whether responses that were cut off count as absent in dynamic sampling.
    ranks : Ranks
        Ranks that train together.
    reader : PromptReader, optional
        Reads the prompts; by default none ahead of its step.
    """

    policy: Policy
    sampler: Sampler
    scorer: Scorer
    source: Source
    options: Rollout
    seed: int = 0
    is_truncated_absent: bool = False
    ranks: Ranks = Ranks()
    reader: PromptReader | None = None

    def collect(self, position: int, watch: Stopwatch) -> Rollouts:
        """Sample and score responses to prompts, until as many prompts as a step has are kept.

        Parameters
        ----------
        position : int
            Number of prompts that the run has drawn before.
        watch : Stopwatch
            Measures the times of ``rollout`` and ``scoring``.

        Returns
        -------
        Rollouts
            Rollouts of all prompts drawn. Fewer than a step's prompts are kept, or none, where
            ``rollout.dynamic_sampling.max_tries`` were not enough.
        """
        options, source = self.options, self.source
        tries: list[_Try] = []
        missing = options.prompts_per_step
        while missing and len(tries) < options.dynamic_sampling.max_tries:
            slots = source.slots(seed=self.seed, position=position, prompts=missing)
            tries.append(self._try(slots, watch))
            position += len(slots)
            missing -= self.ranks.sum(int(tries[-1].keeps.sum()))
        with watch.part("rollout"):
            return _joined(tries, source.tasks, options.num_generations, self.ranks)

    def _try(self, slots: list[Slot], watch: Stopwatch) -> _Try:
        """Sample and score responses to this rank's share of some prompts."""
        options, ranks = self.options, self.ranks
        share = ranks.share(len(slots))
        with watch.part("rollout"):
            with ranks.raise_on_all_ranks():
                asked = (self.reader or PromptReader(self.policy, self.source)).read(slots, share)
                prompts = join_prompts(asked)
            records = [prompt.record for prompt in asked]
            completions = self.sampler(self.policy, prompts, records, options, share)
            own = asked[: len(share.own)]
            texts = whole_responses([prompt.chat.opened for prompt in own], completions.texts)
            completions = replace(completions, texts=texts)
        with watch.part("scoring"), ranks.raise_on_all_ranks():
            rewards = self.scorer(records[: len(own)], texts)
        counted = rewards
        if self.is_truncated_absent:
            counted = rewards.without(~completions.ended.cpu().numpy())
        keeps = prompts_to_keep(counted, len(own), options.dynamic_sampling)
        return _Try(slots, share, own, prompts, completions, rewards, keeps)

    def ahead(self, position: int) -> AbstractContextManager[None]:
        """Read the prompts of the step from a position on, while the context runs."""
        if self.reader is None:
            return nullcontext()
        slots = self.source.slots(
            seed=self.seed, position=position, prompts=self.options.prompts_per_step
        )
        return self.reader.ahead(slots, self.ranks)


def prompts_to_keep(rewards: Rewards, prompts: int, options: DynamicSampling) -> Flags:
    """Return the prompts that a step learns from, (prompts,) bool.

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
    tries: Sequence[_Try], task_names: Sequence[str], num_generations: int, ranks: Ranks
) -> Rollouts:
    """Return the rollouts of all tries, with the texts and numbers of all ranks."""
    slots: list[Slot] = []
    numbers: list[int] = []
    for each in tries:
        numbers += [len(slots) + number for number in each.share.own]
        slots += each.slots
    keeps = np.concatenate([each.keeps for each in tries])
    completions = concatenated([each.completions for each in tries])
    rows = torch.tensor(numbers, dtype=torch.int64).repeat_interleave(num_generations)
    rewards = zip(*(each.rewards.columns().values() for each in tries), strict=True)
    columns = [
        torch.from_numpy(keeps.repeat(num_generations)),
        completions.lengths.cpu(),
        completions.ended.cpu(),
        completions.entropies.sum(-1).cpu(),
        *(torch.from_numpy(np.concatenate(column)) for column in rewards),
    ]
    gathered, own = ranks.gather_sorted(rows, *columns)
    keeps_rows, lengths, ended, entropies, *rewards_of_all = (each.numpy() for each in gathered)
    asked = [(prompt.record.problem, prompt.chat.opened) for each in tries for prompt in each.own]
    problems, opened = zip(*ranks.gather_sorted_objects(numbers, asked), strict=True)
    return Rollouts(
        problems=list(problems),
        opened=list(opened),
        prompt_tasks=np.asarray([slot.task for slot in slots]),
        task_names=task_names,
        keeps=keeps_rows[::num_generations],
        tries=len(tries),
        texts=ranks.gather_sorted_objects(rows.tolist(), completions.texts),
        lengths=lengths,
        ended=ended,
        total_entropies=entropies,
        rewards=Rewards(*rewards_of_all),
        own=own.numpy(),
        prompts=_kept_prompts(tries),
        tokens=completions.tokens,
        mask=completions.mask,
        logprobs=completions.logprobs,
        entropies=completions.entropies,
        sampler_logprobs=completions.sampler_logprobs,
    )


def _kept_prompts(tries: Sequence[_Try]) -> Inputs:
    pairs = [pair for each in tries for pair in zip(each.own, each.keeps, strict=True)]
    kept = [prompt for prompt, keep in pairs if keep]
    if len(tries) > 1 and kept:
        # Batches of different lengths, and some with images: put together anew.
        return join_prompts(kept)
    prompts, rows = tries[0].prompts, torch.from_numpy(tries[0].keeps).nonzero()[:, 0]
    if len(rows) == len(prompts["input_ids"]):
        return prompts
    return select_rows(prompts, rows.to(prompts["input_ids"].device))
