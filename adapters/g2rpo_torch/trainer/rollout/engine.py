"""Responses from a separate inference engine, which has a copy of the policy's weights.

An engine computes in another precision and order than the policy, so its tokens are samples of a
slightly different distribution. Log-probabilities and exact entropies under the policy come from
one pass without gradient; the ratio of the two distributions weights the surrogate, truncated
(``importance_weights`` of :func:`g2rpo.policy_loss`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from g2rpo._suggest import unknown_name
from g2rpo.run.description import RunDescription
from g2rpo.run.errors import RunError
from g2rpo.run.sections import Rollout
from g2rpo.tasks import Record

from ..distributed.processes import Processes, Share
from ..inputs.prompts import Inputs
from ..learning.batch import Batch
from ..learning.update import evaluated
from ..model.policy_model import Policy
from .sampling import Completions, sample_as_described


class Sampled(NamedTuple):
    """One response of an engine.

    Attributes
    ----------
    tokens : list of int
        The token that ends it included.
    logprobs : list of float
        Log-probability in nats of each under the engine's distribution.
    ended : bool
        False where it was cut off at its limit.
    """

    tokens: list[int]
    logprobs: list[float]
    ended: bool


class Engine(Protocol):
    """What samples; for example :class:`~g2rpo_torch.trainer.rollout.vllm_engine.VLLMEngine`."""

    def load(self, policy: Policy) -> None:
        """Take over the policy's weights as they are now."""

    def generate(
        self, policy: Policy, prompts: Inputs, records: Sequence[Record], options: Rollout
    ) -> list[list[Sampled]]:
        """Return ``options.num_generations`` responses to each of P prompts."""


class Sampler(Protocol):
    """What a step asks for responses."""

    def __call__(
        self,
        policy: Policy,
        prompts: Inputs,
        records: Sequence[Record],
        options: Rollout,
        share: Share | None = None,
        /,
    ) -> Completions:
        """Return responses to P prompts, those of one prompt next to each other.

        Of several processes each samples its share, as
        :func:`~g2rpo_torch.trainer.rollout.sampling.sample` says.
        """


class EngineSampler:
    """Samples with an engine, and says what the policy thinks of its tokens.

    Parameters
    ----------
    engine : Engine
        Given the policy's weights whenever they have changed.
    description : RunDescription
        Its rollout and optimization sections.
    """

    def __init__(self, engine: Engine, description: RunDescription) -> None:
        self._engine, self._description = engine, description
        self._loaded: int | None = None

    def __call__(
        self,
        policy: Policy,
        prompts: Inputs,
        records: Sequence[Record],
        options: Rollout,
        share: Share | None = None,
    ) -> Completions:
        """Return responses with the policy's log-probabilities and the engine's beside them.

        There is only one process, whose share is all.
        """
        # Every update in place counts up the version of a weight.
        version = sum(weight._version for weight in policy.model.parameters())
        if version != self._loaded:
            self._engine.load(policy)
            self._loaded = version
        answers = self._engine.generate(policy, prompts, records, options)
        responses = [response for group in answers for response in group]
        longest = max(1, *(len(response.tokens) for response in responses))

        def table(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> torch.Tensor:
            padded = [[*row, *[fill] * (longest - len(row))] for row in rows]
            return torch.tensor(padded, dtype=dtype, device=policy.device)

        padding = policy.tokenizer.pad_token_id
        tokens = table([each.tokens for each in responses], padding, torch.int64)
        sampled = table([each.logprobs for each in responses], 0.0, torch.float32)
        mask = table([[1.0] * len(each.tokens) for each in responses], 0.0, torch.bool)
        groups = torch.arange(len(answers), device=policy.device)
        groups = groups.repeat_interleave(options.num_generations)
        nothing = torch.zeros_like(sampled)
        batch = Batch(prompts, groups, tokens, mask, sampled, nothing, nothing[:, 0], None, groups)
        logprobs, entropies = evaluated(batch, policy, self._description)
        return Completions(
            tokens=tokens,
            mask=mask,
            logprobs=logprobs,
            entropies=entropies,
            texts=[policy.tokenizer.decode(r.tokens, skip_special_tokens=True) for r in responses],
            ended=torch.tensor([each.ended for each in responses], device=policy.device),
            sampler_logprobs=sampled,
        )


def open_sampler(description: RunDescription, policy: Policy) -> Sampler:
    """Return what a run samples its training responses with.

    Raises
    ------
    RunError
        If the engine is not installed or cannot sample this policy, or a limit is for no task.
    """
    for task in description.rollout.limits:
        if task not in description.data.tasks:
            raise RunError(f"rollout.limits: {unknown_name('task', task, description.data.tasks)}")
    if description.rollout.engine == "transformers":
        return sample_as_described
    if policy.has_adapter:
        raise RunError(
            "rollout.engine is 'vllm', which takes no low-rank adapter (model.lora); name "
            "'transformers', or train all weights"
        )
    if Processes.current().size > 1:
        raise RunError(
            "rollout.engine is 'vllm', which samples for one process; train with a single one, or "
            "name 'transformers'"
        )
    from .vllm_engine import VLLMEngine

    return EngineSampler(VLLMEngine(description), description)


def importance_weights(completions: Completions) -> torch.Tensor | None:
    """Return the policy's probability of each token over its sampler's, (N, T), or None.

    None where the policy itself has sampled, so that there is nothing to weight.
    """
    if completions.sampler_logprobs is None:
        return None
    return (completions.logprobs - completions.sampler_logprobs).exp()


def sampler_metrics(completions: Completions, cap: float) -> dict[str, float]:
    """Return how far the sampler is from the policy: nothing where they are the same.

    Parameters
    ----------
    completions : Completions
        N responses.
    cap : float
        ``rollout.importance_cap``.
    """
    ratios = importance_weights(completions)
    if ratios is None:
        return {}
    ratios = ratios[completions.mask]
    return {
        "sampler/ratio_mean": float(ratios.mean()),
        "sampler/ratio_max": float(ratios.max()),
        "sampler/capped_ratio": float((ratios > cap).float().mean()),
        "sampler/kl": float(-ratios.log().mean()),
    }
