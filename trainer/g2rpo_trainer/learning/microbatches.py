"""Which responses go through the model together: as many as a budget of tokens allows.

What counts are the tokens that a pass computes, padding included: rows times the length of the
longest. A prompt counts once for each row that it stands in, so once for all of its responses where
they share a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..model.policy_model import Policy
from ..passes.forward import shares_prompts
from ..passes.packing import responses_a_row
from .batch import Batch


def micro_batch_rows(policy: Policy, batch: Batch, budget: int) -> list[torch.Tensor]:
    """Divide the rollouts of a batch into parts of at most so many computed tokens.

    Parameters
    ----------
    policy : Policy
        Whose passes they are for.
    batch : Batch
        N rollouts.
    budget : int
        Tokens; a response that takes more by itself is a part of its own.

    Returns
    -------
    list of Tensor, int64
        Rows of the batch, each once, those that are longest first; which ones go together follows
        from their lengths alone.
    """
    arguments = (policy, batch.prompts, batch.groups, batch.tokens, batch.mask)
    lengths = Lengths(
        prompts=batch.prompts["attention_mask"].sum(-1).tolist(),
        responses=batch.mask.sum(-1).tolist(),
        groups=batch.groups.tolist(),
        hidden=policy.model.config.get_text_config().hidden_size,
    )
    bins = token_bins(lengths, budget, shares=lambda: shares_prompts(*arguments))
    return [torch.tensor(rows, device=batch.tokens.device) for rows in bins]


class Lengths(NamedTuple):
    """The sizes of a batch: tokens of P prompts and N responses, and what a token costs.

    Attributes
    ----------
    prompts : sequence of int
    responses : sequence of int
    groups : sequence of int
        Prompt of each response.
    hidden : int
        Hidden size of the language model.
    """

    prompts: Sequence[int]
    responses: Sequence[int]
    groups: Sequence[int]
    hidden: int

    def rows_of(self, responses: Sequence[int], shares: Callable[[], bool]) -> tuple[int, int]:
        """Return how many rows a pass over some responses computes, and how long they are."""
        by_prompt: dict[int, list[int]] = {}
        for number in responses:
            by_prompt.setdefault(self.groups[number], []).append(self.responses[number])
        prompt = max(self.prompts[group] for group in by_prompt)
        tokens = [self.responses[number] for number in responses]
        most = max(map(len, by_prompt.values()))
        size = responses_a_row(prompt, sum(tokens) / len(tokens), most, self.hidden)
        if size == 1 or not shares():
            return len(tokens), prompt + max(tokens)
        # A response's last token predicts nothing and is left out.
        widths = [
            sum(max(length - 1, 0) for length in lengths[start : start + size])
            for lengths in by_prompt.values()
            for start in range(0, len(lengths), size)
        ]
        return len(widths), prompt + max(widths)


def token_bins(
    lengths: Lengths, budget: int, *, shares: Callable[[], bool] = lambda: True
) -> list[list[int]]:
    """Divide responses into bins of at most so many computed tokens.

    Parameters
    ----------
    lengths : Lengths
        Of the batch.
    budget : int
        Tokens.
    shares : callable
        Whether responses may share a row with their prompt; asked only where that would pay.

    Returns
    -------
    list of list of int
        Numbers of responses. A group is cut only if it exceeds the budget by itself, and only a
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
        rows, length = lengths.rows_of(responses, shares)
        return rows * length <= budget

    by_prompt: dict[int, list[list[int]]] = {}
    for number, group in enumerate(lengths.groups):
        by_prompt.setdefault(group, []).append([number])
    parts = [part for responses in by_prompt.values() for part in _filled(responses, fits)]
    # Rows of like length together, so that little is padded; the sort keeps the order of equals.
    parts.sort(key=lambda part: -lengths.rows_of(part, shares)[1])
    return _filled(parts, fits)


def _filled(parts: Sequence[list[int]], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """Join parts that follow each other as long as they fit together."""
    bins: list[list[int]] = []
    for part in parts:
        if bins and fits(bins[-1] + part):
            bins[-1] += part
        else:
            bins.append(list(part))
    return bins
