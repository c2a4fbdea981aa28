"""The differentiable pass: what the policy predicts of given responses."""

from __future__ import annotations

from typing import Any

import torch

import g2rpo

from ..inputs.prompts import Inputs, extend_rows, first_with_images, select_rows
from ..model.policy_model import Policy
from ..model.trials import disagreement
from .head import goes_without_logits, predictions_from_hidden
from .masks import as_response_types
from .packed import packed_predictions, packing_obstacle
from .packing import responses_a_row, split_groups
from .positions import accepts_positions, has_image_positions, text_positions
from .predictions import FromLogits, Predictions, Values


def completion_predictions(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> Predictions:
    """Return the predictions of every token of N responses.

    A prompt is computed once for all of its responses where the model allows it
    (:mod:`~g2rpo_trainer.packed`), else once for each.

    Parameters
    ----------
    policy : Policy
        Whose model is run.
    prompts : dict of str to Tensor
        P prompts, padded on the left.
    groups : Tensor (N,), int64
        Row of the prompt that each response answers.
    tokens, mask : Tensor (N, T)
        The responses, padded on the right, and True at their tokens. A response may be empty.
    temperature : float
        The one that the responses were sampled at.

    Returns
    -------
    Predictions
        With log-probabilities and entropies (N, T), meaningless where the mask is False, and with
        the loss; both differentiable.
    """
    arguments = (policy, prompts, groups, tokens, mask)
    size = _responses_a_row(policy, prompts, groups, mask)
    if size == 1 or not shares_prompts(*arguments):
        return plain_predictions(*arguments, temperature=temperature)
    rows, kept = split_groups(groups, size)
    shared = select_rows(prompts, kept)
    return packed_predictions(policy, shared, rows, tokens, mask, temperature=temperature)


def shares_prompts(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
) -> bool:
    """Tell whether responses may share a row with their prompt.

    The arguments are those of :func:`completion_predictions`; where it is not known yet, it is
    tried on these responses.
    """
    return policy.trials.allows(
        "forward", lambda: packing_trial(policy, prompts, groups, tokens, mask)
    )


def completion_logprobs(*arguments: Any, **options: Any) -> Values:
    """Return log-probability and entropy of every token, (N, T) float32, in nats.

    The arguments are those of :func:`completion_predictions`.
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
) -> Predictions:
    """Return the same with a copy of the prompt for each response; any architecture can do it."""
    repeated, prompt_length = select_rows(prompts, groups), prompts["input_ids"].shape[1]
    inputs = as_response_types(policy.model, extend_rows(repeated, tokens), prompt_length)
    inputs["attention_mask"] = torch.cat([repeated["attention_mask"], mask.long()], dim=1)
    # Where images have positions, the model finds them itself from the whole row.
    if accepts_positions(policy.model) and not has_image_positions(policy.model, inputs):
        inputs["position_ids"] = text_positions(inputs["attention_mask"])
    if goes_without_logits(policy, prompts):
        rows, places = (torch.arange(size, device=tokens.device) for size in tokens.shape)
        return predictions_from_hidden(
            policy,
            inputs,
            tokens.shape[1] + 1,
            (rows[:, None], places),
            tokens.masked_fill(~mask, -100),
            temperature=temperature,
        )
    # The logits before each response token; those after the last one predict nothing.
    output = policy.model(**inputs, use_cache=False, logits_to_keep=tokens.shape[1] + 1)
    logits = policy.masked_logits(output.logits[:, :-1], temperature)
    # Padding may be a banned token: any token with a finite logit will do in its place.
    safe_tokens = torch.where(mask, tokens, policy.harmless_id)
    logprobs = logits.log_softmax(-1).gather(-1, safe_tokens[..., None])[..., 0]
    return FromLogits(logprobs, g2rpo.entropy_from_logits(logits))


def _responses_a_row(
    policy: Policy, prompts: Inputs, groups: torch.Tensor, mask: torch.Tensor
) -> int:
    return responses_a_row(
        prompts["input_ids"].shape[1],
        float(mask.sum()) / max(len(groups), 1),
        int(groups.bincount().max()) if len(groups) else 1,
        policy.model.config.get_text_config().hidden_size,
    )


@torch.no_grad()
def packing_trial(
    policy: Policy,
    prompts: Inputs,
    groups: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
) -> str | None:
    """Compare both ways on the responses to one prompt; return what is in the way."""
    if known := packing_obstacle(policy.model):
        return known
    # The prompt with the most responses says the most about who sees whom; of those with as many
    # one with images.
    responses = 2 * groups[mask.any(-1)].bincount(minlength=len(prompts["input_ids"]))
    responses[first_with_images(prompts)] += 1
    prompt = responses.argmax()
    rows = (groups == prompt).nonzero()[:, 0]
    part = (
        policy,
        select_rows(prompts, prompt[None]),
        torch.zeros_like(rows),
        tokens[rows],
        mask[rows],
    )
    shared, _ = packed_predictions(*part).values()
    plain, _ = plain_predictions(*part).values()
    return disagreement(shared[mask[rows]], plain[mask[rows]], policy.model.dtype)
