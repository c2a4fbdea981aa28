"""The rollouts of a step with all that the loss needs, and parts of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from ..inputs.prompts import Inputs, select_rows, trim_padding
from ..model.policy_model import Policy
from ..passes.forward import completion_logprobs


@dataclass(frozen=True)
class Batch:
    """N rollouts with all that the loss needs; every tensor but the prompts has N rows.

    Attributes
    ----------
    prompts : dict of str to Tensor
        Model inputs of P prompts.
    groups : Tensor (N,), int64
        Row of the prompt that each rollout answers.
    tokens, mask, logprobs, entropies : Tensor (N, T)
        As sampled, see :class:`~g2rpo_trainer.sampling.Completions`.
    advantages : Tensor (N,)
        Of the rewards.
    length_advantages : Tensor (N,) or None
        Of the length rewards.
    tasks : Tensor (N,), int64
        Number of each rollout's task.
    ref_logprobs : Tensor (N, T) or None
        Log-probabilities under the reference policy, where there is a KL term.
    importance_weights : Tensor (N, T) or None
        Factor of each token in the surrogates; None for 1.
    numbers : Tensor (N,), int64, or None
        Number of each rollout's prompt among those of all processes; None if this one has all.
    sampler_logprobs : Tensor (N, T) or None
        Log-probabilities where the tokens were sampled, if that was not the policy itself.
    """

    prompts: Inputs
    groups: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor
    length_advantages: torch.Tensor | None
    tasks: torch.Tensor
    ref_logprobs: torch.Tensor | None = None
    importance_weights: torch.Tensor | None = None
    numbers: torch.Tensor | None = None
    sampler_logprobs: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def rows(self, rows: torch.Tensor | slice) -> Batch:
        """Return some of the rollouts with their prompts, without columns of mere padding.

        There may be none.
        """
        tensors = {
            field.name: getattr(self, field.name)[rows]
            for field in fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        longest = int(tensors["mask"].sum(-1).amax()) if len(tensors["mask"]) else 0
        tensors = {
            name: tensor[:, :longest] if tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        }
        kept, tensors["groups"] = tensors["groups"].unique(return_inverse=True)
        prompts = select_rows(self.prompts, kept)
        return replace(self, prompts=trim_padding(prompts) if len(kept) else prompts, **tensors)

    def restricted(self, counts: torch.Tensor) -> Batch:
        """Return the batch with surrogates over those tokens (N, T) alone that are marked.

        The others stay in the denominators and in the terms of entropy and KL.
        """
        weights = counts.to(self.logprobs.dtype)
        if self.importance_weights is not None:
            weights = weights * self.importance_weights
        return replace(self, importance_weights=weights)

    @torch.no_grad()
    def logprobs_of(self, policy: Policy, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies (N, T) of the responses under a policy."""
        return completion_logprobs(
            policy, self.prompts, self.groups, self.tokens, self.mask, temperature=temperature
        )
