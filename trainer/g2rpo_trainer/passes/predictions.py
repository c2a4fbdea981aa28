"""What a pass of the model says about the tokens of responses, from logits or from hidden states.

Both give log-probabilities and entropies, and the loss with its gradients. From hidden states the
logits are never in memory, and the loss takes three products with the head's weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

import g2rpo
from g2rpo_torch import fused_g2rpo_loss, logprobs_and_entropy

Values: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Loss: TypeAlias = tuple[g2rpo.LossTerms, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class FromLogits:
    """Log-probabilities and entropies (N, T) in nats that are there already, differentiable."""

    logprobs: torch.Tensor
    entropies: torch.Tensor

    def values(self) -> Values:
        """Return log-probability and entropy of every token, (N, T)."""
        return self.logprobs, self.entropies

    def loss(
        self,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        tasks: torch.Tensor,
        **options: Any,
    ) -> Loss:
        """Return what :func:`g2rpo.g2rpo_loss` does with these values."""
        given = (self.logprobs, old_logprobs, advantages, mask)
        return g2rpo.g2rpo_loss(*given, entropies=self.entropies, tasks=tasks, **options)


@dataclass(frozen=True)
class FromHidden:
    """Hidden states, and the linear layer that would make logits of them.

    Attributes
    ----------
    hidden : Tensor (N, T, H)
        From which each token is predicted.
    labels : Tensor (N, T), int64
        The tokens; -100 for one that does not count.
    weight : Tensor (V, H)
    layer : dict
        Bias, low-rank part, temperature and softcap, as
        :func:`g2rpo_torch.logprobs_and_entropy` takes them.
    """

    hidden: torch.Tensor
    labels: torch.Tensor
    weight: torch.Tensor
    layer: dict[str, Any]

    def values(self) -> Values:
        """Return log-probability and entropy of every token, (N, T); 0 where none counts."""
        return logprobs_and_entropy(self.hidden, self.weight, self.labels, **self.layer)

    def loss(
        self,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        tasks: torch.Tensor,
        **options: Any,
    ) -> Loss:
        """Return the same as from logits, from one pass over chunks of tokens."""
        given = (self.labels, old_logprobs, advantages, mask, tasks)
        return fused_g2rpo_loss(self.hidden, self.weight, *given, **self.layer, **options)


Predictions: TypeAlias = FromLogits | FromHidden
