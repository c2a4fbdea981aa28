"""Draw tokens from the logits of a policy, and record what they were drawn from.

There is no top-k and no top-p: responses would come from another distribution than the one that
the surrogate compares with.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad
from transformers import LogitsProcessor

import g2rpo

from .model.policy_model import Policy

# Entries of the vocabulary that are summed together.
_BLOCK = 512


class Draws(LogitsProcessor):
    """Draw the tokens, and record their log-probabilities and entropies.

    ``generate`` then decodes greedily: the score of the token drawn is 1, that of all others 0.

    Parameters
    ----------
    policy : Policy
        Policy that is sampled.
    uniforms : Tensor (N, T)
        Random numbers from 0 to below 1, one for each token.
    temperature : float
        Sampling temperature.
    """

    def __init__(self, policy: Policy, uniforms: torch.Tensor, temperature: float) -> None:
        self._policy, self._temperature = policy, temperature
        # Some devices take one step more than there are tokens, and forget it.
        self._uniforms = pad(uniforms, (0, 1))
        shape = (2, *self._uniforms.shape)
        self._values = torch.zeros(shape, dtype=torch.float32, device=uniforms.device)
        self._place = torch.zeros(1, dtype=torch.int64, device=uniforms.device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (N, V), uint8: 1 at the token of each row, else 0."""
        tokens = self.tokens(scores)[:, None]
        # The highest of bytes is found in half the time of the highest logit.
        return torch.zeros_like(scores, dtype=torch.uint8).scatter_(-1, tokens, 1)

    def tokens(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw the next token of each row, (N,), from the model's logits (N, V)."""
        logits = self._policy.masked_logits(scores, self._temperature)
        logprobs = logits.log_softmax(-1)
        tokens = draw(logprobs, self._uniforms.index_select(1, self._place)[:, 0])
        drawn = logprobs.gather(-1, tokens[:, None])[:, 0]
        found = torch.stack([drawn, g2rpo.entropy_from_logits(logits)])
        self._values.index_copy_(2, self._place, found[..., None])
        self._place.add_(1)
        return tokens

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies of the tokens drawn, (N, T + 1); 0 behind them."""
        logprobs, entropies = self._values
        return logprobs, entropies


def draw(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw a token of each row by inversion: the first at which the summed probability passes u.

    Parameters
    ----------
    logprobs : Tensor (N, V)
        Log-probabilities in nats; −inf for a token that is never drawn.
    uniforms : Tensor (N,)
        From 0 to below 1.

    Returns
    -------
    Tensor (N,), int64

    Examples
    --------
    >>> logprobs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(3, 4)
    >>> draw(logprobs, torch.tensor([0.1, 0.25, 0.8]))
    tensor([0, 2, 3])
    """
    # Summed in double precision, because the rare tokens of 150,000 are lost next to 1 in float32.
    dtype = wide_dtype(logprobs.device)
    if torch.are_deterministic_algorithms_enabled():
        cumulative = _repeatable_sums(logprobs.exp().to(dtype))
    else:
        cumulative = logprobs.exp().cumsum(-1, dtype=dtype)
    passed = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, passed, right=True)[:, 0]
    return tokens.clamp(max=logprobs.shape[-1] - 1)


def _repeatable_sums(values: torch.Tensor) -> torch.Tensor:
    """Return the cumulative sums of rows (N, V) by products, since ``cumsum`` differs on a GPU."""
    blocks = pad(values, (0, -values.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    inside = blocks @ values.new_ones(_BLOCK, _BLOCK).triu()
    before = inside[..., -1] @ values.new_ones(blocks.shape[1], blocks.shape[1]).triu(1)
    sums = (inside + before[..., None]).flatten(1)
    return sums[:, : values.shape[-1]].contiguous()


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
