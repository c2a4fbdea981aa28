"""The differentiable pass: log-probabilities and exact entropies of given responses."""

from __future__ import annotations

import torch

import g2rpo

from .policy_model import Policy
from .prompts import Inputs


def completion_logprobs(
    policy: Policy,
    prompts: Inputs,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability and entropy of every token of B responses.

    Parameters
    ----------
    policy : Policy
        Whose model is run.
    prompts : dict of str to Tensor
        One row a response, padded on the left.
    tokens, mask : Tensor (B, T)
        The responses, padded on the right, and True at their tokens.
    temperature : float
        The one that the responses were sampled at.

    Returns
    -------
    logprobs, entropies : Tensor (B, T), float32
        In nats, differentiable; meaningless where the mask is False.
    """
    inputs = dict(prompts)
    inputs["input_ids"] = torch.cat([prompts["input_ids"], tokens], dim=1)
    inputs["attention_mask"] = torch.cat([prompts["attention_mask"], mask.long()], dim=1)
    # The logits before each response token; those after the last one predict nothing.
    logits = policy.model(**inputs, logits_to_keep=tokens.shape[1] + 1).logits[:, :-1]
    logits = policy.masked_logits(logits, temperature)
    # Padding may be a banned token: any token with a finite logit will do in its place.
    safe_tokens = torch.where(mask, tokens, policy.eos_ids[0])
    logprobs = logits.log_softmax(-1).gather(-1, safe_tokens[..., None])[..., 0]
    return logprobs, g2rpo.entropy_from_logits(logits)
