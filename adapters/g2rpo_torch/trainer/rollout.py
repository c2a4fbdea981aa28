"""Sample responses, and keep what the update needs to know of the distribution they came from.

The logits of generation already hold the old log-probabilities of the surrogate and the exact
entropies, so no further forward pass is spent on either. A prompt is encoded once for all of its
responses where the model allows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList

import g2rpo

from .forward import plain_predictions
from .policy_model import Policy
from .prefill import expanded_prompts
from .prompts import Inputs, select_rows
from .sharing import disagreement


class Completions(NamedTuple):
    """N sampled responses of at most T tokens.

    Attributes
    ----------
    tokens : Tensor (N, T), int64
        Padded on the right.
    mask : Tensor (N, T), bool
        True at the response's tokens, its end token included.
    logprobs : Tensor (N, T), float32
        Log-probability in nats of each token under the distribution it came from; 0 at padding.
    entropies : Tensor (N, T), float32
        Exact entropy in nats of the distribution each token was drawn from; 0 at padding.
    texts : list of str
        Decoded responses, without special tokens.
    ended : Tensor (N,), bool
        False where the response was cut off at the length limit.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    texts: list[str]
    ended: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Response lengths in tokens, (N,) int64."""
        return self.mask.sum(-1)


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Inputs,
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
) -> Completions:
    """Sample ``num_generations`` responses to every prompt.

    Parameters
    ----------
    policy : Policy
        Whose model is sampled.
    prompts : dict of str to Tensor
        P prompts from :func:`~g2rpo_torch.trainer.prompts.encode_prompts`.
    num_generations : int
        Responses to each prompt.
    max_completion_length : int
        Longest response in tokens.
    temperature : float
        Of the sampling; 1 samples from the policy itself.

    Returns
    -------
    Completions
        N = P · num_generations rows, those of one prompt next to each other.
    """
    count, prompt_length = prompts["input_ids"].shape
    can_share = num_generations > 1 and prompt_length > 1
    if can_share and policy.sharing.allows("rollout", lambda: _obstacle(policy, prompts)):
        inputs = expanded_prompts(policy, prompts, num_generations)
    else:
        rows = torch.arange(count, device=policy.device).repeat_interleave(num_generations)
        inputs = select_rows(prompts, rows)
    return _sample(policy, inputs, max_completion_length, temperature)


def _sample(
    policy: Policy, inputs: dict[str, Any], max_completion_length: int, temperature: float
) -> Completions:
    """Sample one response to each of N rows, whose prompts are encoded already or not."""
    recorder = _Recorder(policy, temperature)
    generated = policy.model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([recorder]),
        max_new_tokens=max_completion_length,
        **_plain_sampling(policy),
    )
    tokens = generated[:, inputs["input_ids"].shape[1] :]
    is_end = torch.isin(tokens, torch.tensor(policy.eos_ids, device=tokens.device))
    # A token belongs to the response as long as no end stands before it.
    mask = is_end.cumsum(-1) - is_end.long() == 0
    texts = policy.tokenizer.batch_decode(
        torch.where(mask, tokens, policy.tokenizer.pad_token_id), skip_special_tokens=True
    )
    return Completions(
        tokens=tokens,
        mask=mask,
        logprobs=torch.where(mask, recorder.logprobs(generated), 0.0),
        entropies=torch.where(mask, recorder.entropies(), 0.0),
        texts=texts,
        ended=(is_end & mask).any(-1),
    )


def _obstacle(policy: Policy, prompts: Inputs) -> str | None:
    """Sample a few tokens from a shared prompt, and compare with the plain pass over them."""
    prompt = select_rows(prompts, slice(0, 1))
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        trial = _sample(policy, expanded_prompts(policy, prompt, 2), 4, 1.0)
    groups = torch.zeros(2, dtype=torch.int64, device=policy.device)
    logprobs, _ = plain_predictions(policy, prompt, groups, trial.tokens, trial.mask).values()
    return disagreement(trial.logprobs[trial.mask], logprobs[trial.mask], policy.model.dtype)


class _Recorder(LogitsProcessor):
    """Mask and scale the logits, and record log-probability and entropy of what is then sampled.

    A processor sees the token that was sampled from its output only at the next call, so each call
    first looks up the token of the one before; ``logprobs`` looks up the last.
    """

    def __init__(self, policy: Policy, temperature: float) -> None:
        self._policy = policy
        self._temperature = temperature
        self._previous: torch.Tensor | None = None
        self._chosen: list[torch.Tensor] = []
        self._entropies: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits to sample from, (N, V)."""
        self._look_up(input_ids)
        logits = self._policy.masked_logits(scores, self._temperature)
        self._previous = logits.log_softmax(-1)
        self._entropies.append(g2rpo.entropy_from_logits(logits))
        return logits

    def logprobs(self, sequences: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of all sampled tokens, (N, T)."""
        self._look_up(sequences)
        return torch.stack(self._chosen, dim=1)

    def entropies(self) -> torch.Tensor:
        """Return the entropies of all sampled tokens' distributions, (N, T)."""
        return torch.stack(self._entropies, dim=1)

    def _look_up(self, input_ids: torch.Tensor) -> None:
        if self._previous is not None:
            self._chosen.append(self._previous.gather(-1, input_ids[:, -1:])[:, 0])


def _plain_sampling(policy: Policy) -> dict[str, Any]:
    # Everything that a model's own generation settings might add to sampling is switched off: the
    # recorded log-probabilities must be those of the distribution that was sampled.
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "eos_token_id": list(policy.eos_ids),
        "pad_token_id": policy.tokenizer.pad_token_id,
    }
