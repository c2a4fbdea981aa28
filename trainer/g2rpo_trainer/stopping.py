"""End each response: at an end token, at its own limit, or where a stop text is complete.

The text of a response leaves out the token or text that ended it. Special tokens stay: some are
tags of the answer format, or boxes and points of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import StoppingCriteria

from .model.chat_template import tag_ids
from .model.policy_model import Policy

# To look at tokens the host waits for the device. A few tokens too many at the end of a rollout,
# which are cut off, cost less than a wait after each token.
TOKENS_A_LOOK = 8
"""Tokens after which the host looks whether responses are complete, on other devices than CPUs."""
# Stands for bytes that are no whole character.
_PART_OF_A_CHARACTER = "\ufffd"


class Ends(NamedTuple):
    """Ends of N responses.

    Attributes
    ----------
    lengths : Tensor (N,), int64
        Length of each response in tokens, the end token included.
    ended : Tensor (N,), bool
        False where the response was cut off at its limit.
    """

    lengths: torch.Tensor
    ended: torch.Tensor


class ResponseEnds(StoppingCriteria):
    """End each of N responses by itself, while ``generate`` goes on with the others.

    Parameters
    ----------
    policy : Policy
        Policy that is sampled.
    prompt_length : int
        Columns of ``input_ids`` before the responses.
    limits : Tensor (N,), int64
        Longest length of each response in tokens.
    stop : str, optional
        A response ends with the token that completes this text, or the text by which the policy's
        chat template closes turns.
    """

    def __init__(
        self, policy: Policy, prompt_length: int, limits: torch.Tensor, stop: str | None = None
    ) -> None:
        self._policy, self._prompt_length = policy, prompt_length
        self._limits, self._stops = limits, stop_texts(policy, stop)
        self._stopped_at = torch.full_like(limits, torch.iinfo(limits.dtype).max)
        self._looked_at = 0
        self._completing: dict[int, bool] = {}

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None, **_: object
    ) -> torch.Tensor:
        """Return which responses are complete, (N,) bool; end tokens are ``generate``'s to see."""
        tokens = input_ids[:, self._prompt_length :]
        if tokens.shape[1] % _tokens_a_look(tokens.device) == 0:
            self._look_for_stop(tokens)
        return torch.minimum(self._limits, self._stopped_at) <= tokens.shape[1]

    def of(self, tokens: torch.Tensor) -> Ends:
        """Return the ends of the responses in ``tokens`` (N, T), all that was sampled."""
        complete = self._completed_at(tokens)
        limits = self._limits.clamp(max=tokens.shape[1])
        return Ends(torch.minimum(complete, limits), complete <= limits)

    def all_complete(self, tokens: torch.Tensor) -> bool:
        """Return whether no response goes on behind ``tokens`` (N, T); the host waits for it."""
        ends = torch.minimum(self._completed_at(tokens), self._limits)
        return bool((ends <= tokens.shape[1]).all())

    def _completed_at(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the length at which each response ends by itself; more than T if it does not."""
        self._look_for_stop(tokens)
        ends = torch.tensor(self._policy.eos_ids, dtype=tokens.dtype, device=tokens.device)
        is_end = torch.isin(tokens, ends)
        first_end = torch.where(is_end.any(-1), is_end.int().argmax(-1) + 1, tokens.shape[1] + 1)
        return torch.minimum(first_end, self._stopped_at)

    def _look_for_stop(self, tokens: torch.Tensor) -> None:
        """Find the responses that the tokens since the last look complete, and where."""
        if not self._stops or self._looked_at == tokens.shape[1]:
            return
        # No token of these is empty, and none before them can be part of a text that ends here.
        most = max(len(stop.encode()) for stop in self._stops)
        first = max(0, self._looked_at + 1 - most)
        seen, stopped_at = tokens[:, first:].cpu(), self._stopped_at.cpu()
        completing = self._may_complete(seen[:, self._looked_at - first :])
        for count in range(self._looked_at + 1, tokens.shape[1] + 1):
            still_open = (stopped_at > count) & completing[:, count - self._looked_at - 1]
            rows = still_open.nonzero()[:, 0]
            if not len(rows):
                continue
            tails = seen[rows, max(0, count - most - first) : count - first]
            texts = self._policy.tokenizer.batch_decode(tails, skip_special_tokens=False)
            complete = [any(stop in text for stop in self._stops) for text in texts]
            stopped_at[rows[torch.tensor(complete)]] = count
        self._stopped_at = stopped_at.to(tokens.device)
        self._looked_at = tokens.shape[1]

    def _may_complete(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return which tokens may be the last of a stop text, a bool for each.

        The text of such a token has the last character of a stop text in it, unless its text alone
        is not what it is among others: spaces, and bytes that are no whole character.
        """
        ids, places = tokens.unique(return_inverse=True)
        new = [token for token in ids.tolist() if token not in self._completing]
        texts = self._policy.tokenizer.batch_decode(
            [[token] for token in new], skip_special_tokens=False
        )
        last = {stop[-1] for stop in self._stops}
        for token, text in zip(new, texts, strict=True):
            is_whole = bool(text.strip()) and _PART_OF_A_CHARACTER not in text
            self._completing[token] = not is_whole or not last.isdisjoint(text)
        allowed = torch.tensor([self._completing[token] for token in ids.tolist()])
        if any(character.isspace() for character in last):
            allowed = torch.ones_like(allowed)
        return allowed[places]


def stop_texts(policy: Policy, stop: str | None) -> list[str]:
    """Return the texts that end a response: the run's, and that of the chat template."""
    return [text for text in (stop, policy.closing_text) if text is not None]


def response_texts(policy: Policy, responses: Sequence[Sequence[int]]) -> list[str]:
    """Return the texts of responses, without the token or text that closes the turn.

    Parameters
    ----------
    policy : Policy
        Its tokenizer decodes.
    responses : sequence of sequence of int
        Token ids of each response, the end token included.
    """
    closing = {*policy.eos_ids} - tag_ids(policy.tokenizer)
    kept = [tokens[:-1] if closing.intersection(tokens[-1:]) else tokens for tokens in responses]
    texts = [policy.tokenizer.decode(tokens, skip_special_tokens=False) for tokens in kept]
    if policy.closing_text is None:
        return texts
    return [text.partition(policy.closing_text)[0] for text in texts]


def _tokens_a_look(device: torch.device) -> int:
    return 1 if device.type == "cpu" else TOKENS_A_LOOK
