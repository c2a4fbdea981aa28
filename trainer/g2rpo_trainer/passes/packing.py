"""How responses share rows with their prompts: how many to a row, and where each of them stands.

A row costs the square of its length in attention, so of long responses fewer share one, down to a
single one: that is the plain pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

PROMPT, PADDING = 0, -1
"""What stands in a row beside the responses, which are numbered from 1."""


def responses_a_row(prompt: float, response: float, generations: int, hidden: int) -> int:
    """Return how many responses of a group are best put behind one copy of their prompt.

    Parameters
    ----------
    prompt, response : float
        Mean lengths in tokens.
    generations : int
        Responses to the prompt.
    hidden : int
        Hidden size of the language model.

    Returns
    -------
    int
        From 1 to ``generations``.

    Notes
    -----
    A layer takes about 24·hidden² operations a token for its weights, and 4·hidden for each pair of
    tokens in a row: masked pairs are computed, too.

    Examples
    --------
    >>> responses_a_row(prompt=1024, response=64, generations=8, hidden=2048)
    8
    >>> responses_a_row(prompt=1024, response=1024, generations=8, hidden=2048)
    4
    >>> responses_a_row(prompt=64, response=4096, generations=8, hidden=2048)
    1
    """

    def cost(responses: int) -> float:
        row = prompt + responses * response
        return math.ceil(generations / responses) * row * (6 * hidden + row)

    return min(range(1, generations + 1), key=cost)


def split_groups(groups: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split groups into rows of at most ``size`` responses.

    Parameters
    ----------
    groups : Tensor (N,), int64
        Prompt of each response.
    size : int
        Most responses of a row.

    Returns
    -------
    rows : Tensor (N,), int64
        Row of each response.
    prompts : Tensor (P,), int64
        Prompt of each row.

    Examples
    --------
    >>> split_groups(torch.tensor([0, 0, 0, 2]), 2)
    (tensor([0, 0, 1, 2]), tensor([0, 0, 2]))
    """
    parts = groups * len(groups) + _is_earlier(groups).sum(-1) // size
    kept, rows = parts.unique(return_inverse=True)
    return rows, kept // len(groups)


class Packing(NamedTuple):
    """N responses in the rows of their P prompts, behind the prompt.

    Attributes
    ----------
    tokens : Tensor (P, W), int64
        The responses without their last tokens, which predict nothing; one behind the other.
    segments : Tensor (P, W), int64
        Number of the response from 1, -1 at padding.
    offsets : Tensor (P, W), int64
        Place in the response from 0.
    sources : Tensor (N, T), int64
        Column from which a token is predicted: 0 is the last of the prompt, 1 the first of W.
    """

    tokens: torch.Tensor
    segments: torch.Tensor
    offsets: torch.Tensor
    sources: torch.Tensor


def pack(tokens: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor, prompts: int) -> Packing:
    """Put the responses of each group into one row.

    Parameters
    ----------
    tokens, mask : Tensor (N, T)
        Responses padded on the right, and True at their tokens.
    groups : Tensor (N,), int64
        Row of each response's prompt, in any order.
    prompts : int
        Number of rows.

    Returns
    -------
    Packing
        As wide as the longest row needs.

    Examples
    --------
    >>> tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    >>> packing = pack(tokens, tokens > 0, torch.tensor([0, 0]), 1)
    >>> packing.tokens, packing.segments
    (tensor([[5, 6, 8]]), tensor([[1, 1, 2]]))
    >>> packing.sources
    tensor([[0, 1, 2],
            [0, 3, 3]])
    """
    lengths = (mask.sum(-1) - 1).clamp(min=0)
    is_earlier = _is_earlier(groups)
    starts = (is_earlier * lengths).sum(-1)
    width = int((starts + lengths).max()) if len(groups) else 0
    offsets = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    is_packed = offsets < lengths[:, None]
    places = (
        groups[:, None].expand_as(tokens)[is_packed],
        (starts[:, None] + offsets)[is_packed],
    )
    values = (tokens, is_earlier.sum(-1, keepdim=True) + 1, offsets)
    packed = [
        tokens.new_full((prompts, width), fill).index_put(
            places, value.expand_as(tokens)[is_packed]
        )
        for value, fill in zip(values, (0, PADDING, 0), strict=True)
    ]
    sources = torch.where(offsets == 0, 0, starts[:, None] + offsets).clamp(max=width)
    return Packing(packed[0], packed[1], packed[2], sources)


def _is_earlier(groups: torch.Tensor) -> torch.Tensor:
    """Return where response j stands before response i of the same group, (N, N) bool."""
    return (groups[:, None] == groups).tril(-1)
