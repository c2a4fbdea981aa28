"""Draw tokens by random numbers that are there beforehand, and record what they were drawn from."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

import g2rpo

from ..model.policy_model import Policy


class Draws(LogitsProcessor):
    """Draws the tokens, with log-probability and entropy of what they are drawn from.

    ``generate`` then has no choice: the token drawn is the only one that is not 0.

    Parameters
    ----------
    policy : Policy
        Whose tokens they are.
    uniforms : Tensor (N, T)
        Random numbers from 0 to below 1, one for each token that may come.
    temperature : float
        Of the sampling.
    """

    def __init__(self, policy: Policy, uniforms: torch.Tensor, temperature: float) -> None:
        self._policy, self._uniforms, self._temperature = policy, uniforms, temperature
        self._logprobs: list[torch.Tensor] = []
        self._entropies: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (N, V), uint8: 1 at the token of each row, else 0."""
        logits = self._policy.masked_logits(scores, self._temperature)
        logprobs = logits.log_softmax(-1)
        # Some devices take one step more than there are tokens, and forget it.
        place = min(len(self._logprobs), self._uniforms.shape[1] - 1)
        tokens = draw(logprobs, self._uniforms[:, place])[:, None]
        self._logprobs.append(logprobs.gather(-1, tokens)[:, 0])
        self._entropies.append(g2rpo.entropy_from_logits(logits))
        # The highest of bytes is found in half the time of the highest logit.
        return torch.zeros_like(logits, dtype=torch.uint8).scatter_(-1, tokens, 1)

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies of all tokens drawn, (N, T)."""
        return torch.stack(self._logprobs, dim=1), torch.stack(self._entropies, dim=1)


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
    cumulative = logprobs.exp().cumsum(-1, dtype=wide_dtype(logprobs.device))
    passed = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, passed, right=True)[:, 0]
    return tokens.clamp(max=logprobs.shape[-1] - 1)


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
