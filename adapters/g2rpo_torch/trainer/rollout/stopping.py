"""Where each response ends: at an end token, at its own limit, or where a text is complete."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import StoppingCriteria

from ..model.policy_model import Policy


class Ends(NamedTuple):
    """Where N responses end.

    Attributes
    ----------
    lengths : Tensor (N,), int64
        Tokens of each response, the one that ends it included.
    ended : Tensor (N,), bool
        False where the response was cut off at its limit.
    """

    lengths: torch.Tensor
    ended: torch.Tensor


class ResponseEnds(StoppingCriteria):
    """Ends each of N responses by itself, while ``generate`` goes on with the others.

    Parameters
    ----------
    policy : Policy
        Whose tokens they are.
    prompt_length : int
        Columns of ``input_ids`` before the responses.
    limits : Tensor (N,), int64
        Most tokens of each response.
    stop : str, optional
        The token that completes this text in a response is the response's last.
    """

    def __init__(
        self, policy: Policy, prompt_length: int, limits: torch.Tensor, stop: str | None = None
    ) -> None:
        self._policy, self._prompt_length = policy, prompt_length
        self._limits, self._stop = limits, stop
        self._stopped_at = torch.full_like(limits, torch.iinfo(limits.dtype).max)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **_: object
    ) -> torch.Tensor:
        """Return which responses are complete, (N,) bool; end tokens are ``generate``'s to see."""
        tokens = input_ids[:, self._prompt_length :]
        if self._stop is not None:
            self._note_completed(tokens, self._stop)
        return torch.minimum(self._limits, self._stopped_at) <= tokens.shape[1]

    def of(self, tokens: torch.Tensor) -> Ends:
        """Return where the responses end, of which ``tokens`` (N, T) holds all that was sampled."""
        is_end = torch.isin(tokens, torch.tensor(self._policy.eos_ids, device=tokens.device))
        first_end = torch.where(is_end.any(-1), is_end.int().argmax(-1) + 1, tokens.shape[1] + 1)
        complete = torch.minimum(first_end, self._stopped_at)
        limits = self._limits.clamp(max=tokens.shape[1])
        return Ends(torch.minimum(complete, limits), complete <= limits)

    def _note_completed(self, tokens: torch.Tensor, stop: str) -> None:
        count = tokens.shape[1]
        still_open = (self._stopped_at > count).nonzero()[:, 0]
        # No token of these is empty, and none before them can be part of a text that ends here.
        tails = tokens[still_open, -len(stop.encode()) :]
        texts = self._policy.tokenizer.batch_decode(tails, skip_special_tokens=True)
        complete = torch.tensor([stop in text for text in texts], dtype=torch.bool)
        self._stopped_at[still_open[complete.to(still_open.device)]] = count
