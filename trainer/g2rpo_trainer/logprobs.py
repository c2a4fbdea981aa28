"""Log-probabilities and entropies of given responses under the policy, differentiable.

Prompts are computed once for several responses where ``policy.shortcuts.packed_rows`` is set (see
:mod:`~g2rpo_trainer.packing`), else once for each. With ``policy.shortcuts.without_logits`` the
values come from hidden states and the head's weight, and the logits, which for a vocabulary of
150,000 are most of the memory of an update, are never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

import g2rpo
from g2rpo_torch import fused_g2rpo_loss, linear_head, logprobs_and_entropy

from .block_attention import BLOCK
from .model.head import float32_logits
from .model.policy_model import Policy
from .packing import (
    accepts_positions,
    as_response_types,
    has_image_positions,
    next_positions,
    pack,
    prompt_positions,
    row_masks,
    split_groups,
    text_positions,
    with_padding,
)
from .prompts.batching import Inputs, extend_rows, select_rows
from .row_cost import attention_cost, responses_per_row
from .sharding import call_unsharded


@dataclass(frozen=True)
class FromLogits:
    """Log-probabilities and entropies (N, T) in nats, differentiable."""

    logprobs: torch.Tensor
    entropies: torch.Tensor

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability and entropy of every token, (N, T)."""
        return self.logprobs, self.entropies

    def loss(
        self,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        tasks: torch.Tensor,
        **options: Any,
    ) -> tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]:
        """Return the terms and metrics of :func:`g2rpo.g2rpo_loss`."""
        given = (self.logprobs, old_logprobs, advantages, mask)
        return g2rpo.g2rpo_loss(*given, entropies=self.entropies, tasks=tasks, **options)


@dataclass(frozen=True)
class FromHidden:
    """Hidden states, and the linear head that is applied to them a tile at a time.

    Attributes
    ----------
    hidden : Tensor (N, T, H)
        Hidden state that predicts each token.
    labels : Tensor (N, T), int64
        The tokens; -100 for one that does not count.
    weight : Tensor (V, H)
    layer : dict
        Bias, low-rank part, temperature and softcap, as arguments of
        :func:`g2rpo_torch.logprobs_and_entropy`.
    """

    hidden: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    layer: dict[str, Any]

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probability and entropy of every token, (N, T); 0 where none counts."""
        return logprobs_and_entropy(self.hidden, self.weight, self.labels, **self.layer)

    def loss(
        self,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        tasks: torch.Tensor,
        **options: Any,
    ) -> tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]:
        """Return the same as :class:`FromLogits`, in one pass over chunks of tokens."""
        given = (self.labels, old_logprobs, advantages, mask, tasks)
        return fused_g2rpo_loss(self.hidden, self.weight, *given, **self.layer, **options)


def completion_predictions(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> FromLogits | FromHidden:
    """Return the predictions of every token of N responses.

    Parameters
    ----------
    policy : Policy
        Policy to run, with its shortcuts.
    prompts : dict of str to Tensor
        P prompts, padded on the left.
    groups : Tensor (N,), int64
        Row of the prompt of each response.
    tokens, mask : Tensor (N, T)
        The responses, padded on the right, and True at their tokens. A response may be empty.
    temperature : float
        Sampling temperature of the responses.

    Returns
    -------
    FromLogits or FromHidden
        Log-probabilities and entropies (N, T), undefined where the mask is False, and the loss;
        both differentiable.
    """
    arguments = (policy, prompts, groups, tokens, mask)
    size = 1
    if policy.shortcuts.packed_rows:
        size = responses_per_row(
            prompts["input_ids"].shape[1],
            float(mask.sum()) / max(len(groups), 1),
            int(groups.bincount().max()) if len(groups) else 1,
            policy.model.config.get_text_config().hidden_size,
            attention_cost(policy),
        )
    if size == 1 and not (policy.shortcuts.packed_rows and policy.block_masks):
        return plain_predictions(*arguments, temperature=temperature)
    rows, kept = split_groups(groups, size)
    shared = select_rows(prompts, kept)
    return packed_predictions(policy, shared, rows, tokens, mask, temperature=temperature)


def completion_logprobs(*arguments: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability and entropy of every token, (N, T) float32, in nats.

    Takes the arguments of :func:`completion_predictions`.
    """
    return completion_predictions(*arguments, **options).values()


def plain_predictions(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> FromLogits | FromHidden:
    """Return the same with a copy of the prompt for each response, for any architecture."""
    repeated, prompt_length = select_rows(prompts, groups), prompts["input_ids"].shape[1]
    columns = policy.padding(prompt_length + tokens.shape[1])
    wide_tokens, wide_mask = (pad(table, (0, columns)) for table in (tokens, mask))
    inputs = as_response_types(policy.model, extend_rows(repeated, wide_tokens), prompt_length)
    inputs["attention_mask"] = torch.cat([repeated["attention_mask"], wide_mask.long()], dim=1)
    # Positions of images are computed by the model itself from the whole row.
    if accepts_positions(policy.model) and not has_image_positions(policy.model, inputs):
        inputs["position_ids"] = text_positions(inputs["attention_mask"])
    num_last = wide_tokens.shape[1] + 1
    if policy.shortcuts.without_logits:
        rows, places = (torch.arange(size, device=tokens.device) for size in tokens.shape)
        labels = tokens.masked_fill(~mask, -100)
        hidden = last_hidden_states(policy, inputs, num_last)[rows[:, None], places]
        return predictions_from_hidden(policy, hidden, labels, temperature=temperature)
    with float32_logits(policy.model):
        output = policy.model(**inputs, use_cache=False, logits_to_keep=num_last)
    # The last logits predict nothing.
    logits = policy.masked_logits(output.logits[:, : tokens.shape[1]], temperature)
    # Padding may be a banned token: replaced by one with a finite logit.
    safe_tokens = torch.where(mask, tokens, policy.harmless_id)
    logprobs = logits.log_softmax(-1).gather(-1, safe_tokens[..., None])[..., 0]
    return FromLogits(logprobs, g2rpo.entropy_from_logits(logits))


def packed_predictions(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> FromLogits | FromHidden:
    """Return the same with all responses of a prompt in one row behind it."""
    prompt_length = prompts["input_ids"].shape[1]
    packing = pack(tokens, mask, groups, len(prompts["input_ids"]))
    length = prompt_length + packing.tokens.shape[1]
    in_blocks = policy.block_masks
    packing = with_padding(packing, -length % BLOCK if in_blocks else policy.padding(length))
    positions = prompt_positions(policy.model, prompts)
    behind = next_positions(prompts, positions)[:, None] + packing.offsets
    inputs: dict[str, Any] = extend_rows(prompts, packing.tokens)
    inputs["position_ids"] = torch.cat(
        [positions, behind.expand(*positions.shape[:-1], -1)], dim=-1
    )
    inputs["attention_mask"] = row_masks(policy.model, prompts, packing, in_blocks=in_blocks)
    num_last = inputs["input_ids"].shape[1] - prompt_length + 1
    places = groups[:, None], packing.sources
    if policy.shortcuts.without_logits:
        hidden = last_hidden_states(policy, inputs, num_last)[places]
        labels = tokens.masked_fill(~mask, -100)
        return predictions_from_hidden(policy, hidden, labels, temperature=temperature)
    with float32_logits(policy.model):
        logits = policy.model(**inputs, use_cache=False, logits_to_keep=num_last).logits
    logits = policy.masked_logits(logits, temperature)
    # Padding may be a banned token: replaced by one with a finite logit.
    labels = torch.where(mask, tokens, policy.harmless_id)
    entropies = g2rpo.entropy_from_logits(logits)
    logprobs = logits.log_softmax(-1)[*places, labels]
    return FromLogits(logprobs, entropies[places])


def last_hidden_states(policy: Policy, inputs: dict[str, Any], num_last: int) -> torch.Tensor:
    """Return the last layer's hidden states (B, num_last, H) of a row's last positions."""
    model = policy.model
    output = call_unsharded(model, model.base_model, **inputs, use_cache=False)
    states: torch.Tensor = output.last_hidden_state[:, -num_last:]
    return states


def predictions_from_hidden(
    policy: Policy, hidden: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0
) -> FromHidden:
    """Return the predictions of tokens from hidden states, without logits.

    Parameters
    ----------
    policy : Policy
        Policy with a linear head.
    hidden : Tensor (N, T, H)
        Hidden state that predicts each token.
    labels : Tensor (N, T), int64
        The tokens; -100 for one that does not count.
    temperature : float
        Sampling temperature of the responses.

    Raises
    ------
    TypeError
        If the head is not a linear layer.
    """
    head = linear_head(policy.model.get_output_embeddings(), hidden)
    bias = head.weight.new_zeros(head.weight.shape[0]) if head.bias is None else head.bias
    layer = {
        "bias": bias.index_fill(0, policy.banned_ids, -torch.inf),
        "low_rank": head.low_rank,
        "temperature": temperature,
        "softcap": getattr(policy.model.config.get_text_config(), "final_logit_softcapping", None),
    }
    return FromHidden(hidden, labels, head.weight, layer)
