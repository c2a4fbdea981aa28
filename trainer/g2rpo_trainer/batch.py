"""A step's rollouts with all that the loss needs, and their division into micro-batches.

A micro-batch is limited by the tokens that its pass computes, padding included: rows times the
length of the longest. A prompt counts once per row, so once for all responses that share its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from .distributed import Ranks
from .logprobs import completion_logprobs
from .model.policy_model import Policy
from .prompts.batching import Inputs, select_rows, trim_padding
from .prompts.encoding import encode_prompts
from .record import Record
from .row_cost import CPU_COST, AttentionCost, attention_cost, responses_per_row
from .sharding import is_sharded


@dataclass(frozen=True)
class Batch:
    """N rollouts; every tensor but the prompts has N rows.

    Attributes
    ----------
    prompts : dict of str to Tensor
        Model inputs of P prompts.
    groups : Tensor (N,), int64
        Row of each rollout's prompt.
    tokens, mask, logprobs, entropies : Tensor (N, T)
        As sampled, see :class:`~g2rpo_trainer.sampling.Completions`.
    advantages : Tensor (N,)
        Advantages of the rewards.
    length_advantages : Tensor (N,) or None
        Advantages of the length rewards.
    tasks : Tensor (N,), int64
        Task number of each rollout.
    task_names : sequence of str
        Names of the tasks, also of those without rollouts here.
    ref_logprobs : Tensor (N, T) or None
        Log-probabilities under the reference policy, for the KL term.
    importance_weights : Tensor (N, T) or None
        Factor of each token in the surrogates; None for 1.
    numbers : Tensor (N,), int64, or None
        Number of each rollout's prompt among those of all ranks; None if this rank has all.
    sampler_logprobs : Tensor (N, T) or None
        Log-probabilities under the sampler, if that was not the policy itself.
    """

    prompts: Inputs
    groups: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor
    length_advantages: torch.Tensor | None
    tasks: torch.Tensor
    task_names: Sequence[str]
    ref_logprobs: torch.Tensor | None = None
    importance_weights: torch.Tensor | None = None
    numbers: torch.Tensor | None = None
    sampler_logprobs: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def rows(self, rows: torch.Tensor | slice) -> Batch:
        """Return some of the rollouts, or none, with their prompts and without needless padding."""
        tensors = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        longest = int(tensors["mask"].sum(-1).amax()) if len(tensors["mask"]) else 0
        tensors = {
            name: tensor[:, :longest] if tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        }
        kept, tensors["groups"] = tensors["groups"].unique(return_inverse=True)
        prompts = select_rows(self.prompts, kept)
        return replace(self, prompts=trim_padding(prompts) if len(kept) else prompts, **tensors)

    def restricted(self, counts: torch.Tensor) -> Batch:
        """Return the batch with surrogates over the marked tokens (N, T) only.

        The others stay in the denominators and in the entropy and KL terms.
        """
        weights = counts.to(self.logprobs.dtype)
        if self.importance_weights is not None:
            weights = weights * self.importance_weights
        return replace(self, importance_weights=weights)

    @torch.no_grad()
    def logprobs_of(self, policy: Policy, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies (N, T) of the responses under a policy."""
        return completion_logprobs(
            policy, self.prompts, self.groups, self.tokens, self.mask, temperature=temperature
        )


def micro_batch_rows(policy: Policy, batch: Batch, budget: int) -> list[torch.Tensor]:
    """Divide the rollouts of a batch into parts of at most so many computed tokens.

    Parameters
    ----------
    policy : Policy
        Policy to run, with its shortcuts.
    batch : Batch
        N rollouts.
    budget : int
        Tokens; a response that exceeds it is a part of its own.

    Returns
    -------
    list of Tensor, int64
        Rows of the batch, each once, longest first; the division depends on lengths alone.
    """
    lengths = Lengths(
        prompts=batch.prompts["attention_mask"].sum(-1).tolist(),
        responses=batch.mask.sum(-1).tolist(),
        groups=batch.groups.tolist(),
        hidden=policy.model.config.get_text_config().hidden_size,
        attention=attention_cost(policy),
    )
    bins = token_bins(lengths, budget, packed=policy.shortcuts.packed_rows)
    return [torch.tensor(rows, device=batch.tokens.device) for rows in bins]


def dummy_passes(policy: Policy, batch: Batch, planned: int, ranks: Ranks) -> list[Batch]:
    """Return dummy batches so that every rank runs the same number of passes; a collective.

    Only for a sharded model, whose passes contain collectives.

    Parameters
    ----------
    policy : Policy
        Policy to run.
    batch : Batch
        Batch of the real passes; its columns are those of the dummies.
    planned : int
        Number of this rank's real passes.
    ranks : Ranks
        Ranks that train together.

    Returns
    -------
    list of Batch
        One response of one token each.
    """
    if not is_sharded(policy.model):
        return []
    missing = ranks.max(planned) - planned
    return [_dummy(policy, batch)] * missing if missing else []


def _dummy(policy: Policy, like: Batch) -> Batch:
    columns: dict[str, Any] = {
        field.name: tensor.new_zeros((1, 1)[: tensor.ndim])
        for field in fields(like)
        if isinstance(tensor := getattr(like, field.name), torch.Tensor)
    }
    columns["tokens"] += policy.harmless_id
    columns["mask"] = torch.ones_like(columns["mask"])
    prompts = encode_prompts(policy, [Record("?", "", "numerical", "dummy")])
    columns |= {"prompts": prompts, "task_names": like.task_names}
    return Batch(**{"length_advantages": None, **columns})


def batch_values(
    policy: Policy, batch: Batch, budget: int, temperature: float, ranks: Ranks = Ranks()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies (N, T) of a batch under a policy.

    Parameters
    ----------
    policy : Policy
        Policy to run.
    batch : Batch
        This rank's rollouts.
    budget : int
        Tokens of a micro-batch, as in :func:`micro_batch_rows`.
    temperature : float
        Sampling temperature of the responses.
    ranks : Ranks
        Ranks that train together.
    """
    logprobs, entropies = torch.zeros_like(batch.logprobs), torch.zeros_like(batch.logprobs)
    micro_batches = micro_batch_rows(policy, batch, budget)
    dummies = dummy_passes(policy, batch, len(micro_batches), ranks)
    for rows in micro_batches:
        part = batch.rows(rows)
        values = part.logprobs_of(policy, temperature)
        for table, some in zip((logprobs, entropies), values, strict=True):
            table[rows, : part.mask.shape[1]] = torch.where(part.mask, some, 0.0)
    for dummy in dummies:
        dummy.logprobs_of(policy, temperature)
    return logprobs, entropies


class Lengths(NamedTuple):
    """Numbers of tokens of P prompts and N responses, and the hidden size.

    Attributes
    ----------
    prompts : sequence of int
    responses : sequence of int
    groups : sequence of int
        Prompt of each response.
    hidden : int
        Hidden size of the language model.
    attention : AttentionCost
        Cost of attention over packed rows.
    """

    prompts: Sequence[int]
    responses: Sequence[int]
    groups: Sequence[int]
    hidden: int
    attention: AttentionCost = CPU_COST

    def rows_of(self, responses: Sequence[int], packed: bool) -> tuple[int, int]:
        """Return number and length of the rows of a pass over some responses."""
        by_prompt: dict[int, list[int]] = {}
        for number in responses:
            by_prompt.setdefault(self.groups[number], []).append(self.responses[number])
        prompt = max(self.prompts[group] for group in by_prompt)
        tokens = [self.responses[number] for number in responses]
        size = 1
        if packed:
            most = max(map(len, by_prompt.values()))
            mean = sum(tokens) / len(tokens)
            size = responses_per_row(prompt, mean, most, self.hidden, self.attention)
        if size == 1:
            return len(tokens), prompt + max(tokens)
        # A response's last token predicts nothing and is left out.
        widths = [
            sum(max(length - 1, 0) for length in lengths[start : start + size])
            for lengths in by_prompt.values()
            for start in range(0, len(lengths), size)
        ]
        return len(widths), prompt + max(widths)


def token_bins(lengths: Lengths, budget: int, *, packed: bool = True) -> list[list[int]]:
    """Divide responses into bins of at most so many computed tokens.

    Parameters
    ----------
    lengths : Lengths
        Lengths of the batch.
    budget : int
        Tokens.
    packed : bool
        Whether responses share rows with their prompt where that is cheaper.

    Returns
    -------
    list of list of int
        Numbers of responses. A group is split only if it exceeds the budget by itself, and only a
        single response can exceed it.

    Examples
    --------
    Two prompts of 100 tokens with three answers of 11 each: 130 tokens a group.

    >>> lengths = Lengths([100, 100], [11] * 6, [0, 0, 0, 1, 1, 1], hidden=512)
    >>> token_bins(lengths, 260)
    [[0, 1, 2, 3, 4, 5]]
    >>> token_bins(lengths, 259)
    [[0, 1, 2], [3, 4, 5]]
    >>> token_bins(lengths, 120)
    [[0, 1], [3, 4], [2], [5]]
    """

    def fits(responses: list[int]) -> bool:
        rows, length = lengths.rows_of(responses, packed)
        return rows * length <= budget

    by_prompt: dict[int, list[list[int]]] = {}
    for number, group in enumerate(lengths.groups):
        by_prompt.setdefault(group, []).append([number])
    parts = [part for responses in by_prompt.values() for part in _filled(responses, fits)]
    # Rows of similar length together, for little padding; the sort is stable.
    parts.sort(key=lambda part: -lengths.rows_of(part, packed)[1])
    return _filled(parts, fits)


def _filled(parts: Sequence[list[int]], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """Join consecutive parts as long as they fit together."""
    bins: list[list[int]] = []
    for part in parts:
        if bins and fits(bins[-1] + part):
            bins[-1] += part
        else:
            bins.append(list(part))
    return bins
