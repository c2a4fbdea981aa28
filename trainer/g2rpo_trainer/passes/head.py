"""Predictions of a policy's tokens from hidden states, where its head allows.

The logits of a vocabulary of 150,000 are most of the memory of an update, and
:func:`g2rpo_torch.fused_g2rpo_loss` does without. It needs a linear layer on top of the hidden
states and nothing else. That is tried on the first prompt of a run, against the model's own logits,
and given up with one line in the log where the two do not agree.
"""

from __future__ import annotations

from typing import Any

import torch

from g2rpo_torch import linear_head

from ..distributed.sharding import inside
from ..inputs.prompts import Inputs, first_with_images, select_rows
from ..model.policy_model import Policy
from ..model.trials import disagreement
from .predictions import FromHidden

# From here on logits at once take longer, but for so few tokens that neither takes long: with 2,048
# entries on two cores 37 ms against 29 for 1,024 tokens, and 272 against 115 for 4,096. The number
# of tokens has no say: it differs between processes, and all must go through the same layers.
_LARGE_VOCABULARY = 2048
# How many tokens of the first prompt are compared.
_COMPARED = 8


def has_large_vocabulary(policy: Policy) -> bool:
    """Tell whether it is worth while to go without logits."""
    head = policy.model.get_output_embeddings()
    # A model without an output layer that it names has logits of its own making.
    return head is not None and head.weight.shape[0] >= _LARGE_VOCABULARY


def goes_without_logits(policy: Policy, prompts: Inputs) -> bool:
    """Tell whether the values of tokens are computed without logits.

    Parameters
    ----------
    policy : Policy
        Whose head it is.
    prompts : dict of str to Tensor
        Of which the first is tried, the first time that the answer depends on it.
    """
    if not has_large_vocabulary(policy):
        return False
    return policy.trials.allows("head", lambda: head_trial(policy, prompts))


def predictions_from_hidden(
    policy: Policy,
    inputs: dict[str, Any],
    num_last: int,
    places: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    *,
    temperature: float,
) -> FromHidden:
    """Return the predictions of N responses' tokens.

    Parameters
    ----------
    policy : Policy
        Whose model is run.
    inputs : dict
        Of the model.
    num_last : int
        How many of the last positions predict something.
    places : tuple of Tensor
        Row, and place among the last positions, from which each token is predicted; their shapes
        broadcast to (N, T).
    labels : Tensor (N, T), int64
        The tokens; -100 for one that does not count.
    temperature : float
        The one that the responses were sampled at.
    """
    model = policy.model
    states = inside(model, model.base_model, **inputs, use_cache=False).last_hidden_state
    hidden = states[:, -num_last:][places]
    head = linear_head(policy.model.get_output_embeddings(), hidden)
    bias = head.weight.new_zeros(head.weight.shape[0]) if head.bias is None else head.bias
    layer = {
        "bias": bias.index_fill(0, policy.banned_ids, -torch.inf),
        "low_rank": head.low_rank,
        "temperature": temperature,
        "softcap": getattr(policy.model.config.get_text_config(), "final_logit_softcapping", None),
    }
    return FromHidden(hidden, labels, head.weight, layer)


@torch.no_grad()
def head_trial(policy: Policy, prompts: Inputs) -> str | None:
    """Compare both ways on the last tokens of one prompt; return what is in the way."""
    first = first_with_images(prompts)
    prompt: dict[str, Any] = dict(select_rows(prompts, slice(first, first + 1)))
    output = policy.model(**prompt, use_cache=False, logits_to_keep=_COMPARED)
    logprobs = policy.masked_logits(output.logits, 1.0).log_softmax(-1)
    plain, labels = logprobs.max(-1)
    places = torch.zeros_like(labels), torch.arange(labels.shape[1], device=labels.device)[None]
    ours, _ = predictions_from_hidden(
        policy, prompt, labels.shape[1], places, labels, temperature=1.0
    ).values()
    return disagreement(ours.reshape(-1), plain.reshape(-1), policy.model.dtype)
