"""How many responses share a packed row: the cheapest number, by arithmetic.

Attention costs the square of a row's length, or what is visible of it, so long responses share a
row with fewer others, down to one response a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .block_attention import BLOCK
from .model.policy_model import Policy


class AttentionCost(NamedTuple):
    """Cost of attention beside that of matrix products.

    Attributes
    ----------
    pair : float
        Time of an operation of a pair of tokens over that of an operation of a matrix product.
    block : int or None
        Side of the blocks that are skipped where no pair is visible [tokens]; None where all
        pairs of a row are computed.
    """

    pair: float
    block: int | None = None


CPU_COST = AttentionCost(1.0)
# Assumed, not measured: kernels with masks reach a fraction of the rate of matrix products.
CUDA_COST = AttentionCost(4.0)
BLOCK_COST = AttentionCost(2.0, BLOCK)


def attention_cost(policy: Policy) -> AttentionCost:
    """Return the cost of attention over packed rows of a policy on its device."""
    return cost_on(is_gpu=policy.device.type == "cuda", in_blocks=policy.block_masks)


def cost_on(*, is_gpu: bool, in_blocks: bool) -> AttentionCost:
    """Return the cost of attention over packed rows on a CUDA device or a CPU."""
    if in_blocks:
        return BLOCK_COST
    return CUDA_COST if is_gpu else CPU_COST


def responses_per_row(
    prompt: float,
    response: float,
    generations: int,
    hidden: int,
    attention: AttentionCost = CPU_COST,
) -> int:
    """Return the cheapest number of responses to pack behind one copy of their prompt.

    Parameters
    ----------
    prompt, response : float
        Mean lengths in tokens.
    generations : int
        Number of responses to the prompt.
    hidden : int
        Hidden size of the language model.
    attention : AttentionCost
        Cost of a pair of tokens; by default that of a CPU.

    Returns
    -------
    int
        From 1 to ``generations``.

    Notes
    -----
    A layer takes about 24·hidden² operations per token for its weights, and 4·hidden per computed
    pair of tokens: all pairs of a row, or those in blocks with a visible pair.

    Examples
    --------
    >>> responses_per_row(prompt=1024, response=64, generations=8, hidden=2048)
    8
    >>> responses_per_row(prompt=1024, response=1024, generations=8, hidden=2048)
    4
    >>> responses_per_row(prompt=64, response=4096, generations=8, hidden=2048)
    1

    Blocks that are skipped leave the prompt's tokens as the largest saving:

    >>> responses_per_row(1024, 1024, 8, 2048, BLOCK_COST)
    8
    """

    def cost(responses: int) -> float:
        row = prompt + responses * response
        keys = keys_of_a_token(prompt, response, responses, attention.block)
        return math.ceil(generations / responses) * row * (6 * hidden + attention.pair * keys)

    return min(range(1, generations + 1), key=cost)


def keys_of_a_token(prompt: float, response: float, responses: int, block: int | None) -> float:
    """Return the mean number of keys that are computed for a token of a row, seen or masked."""
    row = prompt + responses * response
    if block is None:
        return row
    # Half a block more at the diagonal, and behind the prompt as much at both ends of a response.
    pairs = prompt * (prompt + block) / 2
    pairs += responses * response * (prompt + response / 2 + 3 * block / 2)
    return min(row, pairs / row)
