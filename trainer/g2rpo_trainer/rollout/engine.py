"""Responses from a separate inference engine, which has a copy of the policy's weights.

An engine computes in another precision and order than the policy, so its tokens are samples of a
slightly different distribution. Log-probabilities and exact entropies under the policy come from
one pass without gradient; the ratio of the two distributions weights the surrogates
(:func:`g2rpo.sampler_weights`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

import g2rpo
from g2rpo_trainer.config import Rollout, TrainConfig
from g2rpo_trainer.record import Record

from ..distributed.processes import Processes, Share
from ..inputs.prompts import Inputs
from ..learning.batch import Batch
from ..learning.update import evaluated
from ..model.policy_model import Policy
from .requests import Request, Sampled, make_requests
from .sampling import Completions
from .stopping import response_texts
from .synchronised import weights_of


class Engine(Protocol):
    """What samples; for example :class:`~g2rpo_trainer.rollout.vllm_engine.VLLMEngine`."""

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over the policy's weights as they are now, by the names that its files have."""

    def generate(self, requests: Sequence[Request]) -> list[list[Sampled]]:
        """Return as many responses to each prompt as its request wants."""

    def close(self) -> None:
        """Give back what it holds; the run is over."""


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
        :func:`~g2rpo_trainer.rollout.sampling.sample` says.
        """


class EngineSampler:
    """Samples with an engine, and says what the policy thinks of its tokens.

    Parameters
    ----------
    engine : Engine or None
        Given the policy's weights whenever they have changed. None on all processes but the first
        where that one's engine samples for all.
    config : TrainConfig
        Its rollout and optimization sections.
    samples_for_all : bool
        Whether the first process's engine does; else each process has one.
    """

    def __init__(
        self, engine: Engine | None, config: TrainConfig, *, samples_for_all: bool = False
    ) -> None:
        self._engine, self._description = engine, config
        self._samples_for_all = samples_for_all
        self._loaded: int | None = None

    def __call__(
        self,
        policy: Policy,
        prompts: Inputs,
        records: Sequence[Record],
        options: Rollout,
        share: Share | None = None,
    ) -> Completions:
        """Return responses with the policy's log-probabilities and the engine's beside them."""
        self._synchronise(policy)
        count = len(records)
        seeds = torch.randint(2**31, (count if share is None else share.total,))
        if share is not None:
            seeds = seeds[list(share.padded)]
        with Processes.current().together():
            requests = make_requests(policy, prompts, records, options, seeds.tolist())
        completions = self._evaluated(policy, prompts, self._answers(requests))
        if share is None or share.own == share.padded:
            return completions
        own = len(share.own) * options.num_generations
        return completions.rows(torch.arange(own, device=policy.device))

    def close(self) -> None:
        """End the engine, if this process has one."""
        if self._engine is not None:
            self._engine.close()

    def _synchronise(self, policy: Policy) -> None:
        # Every update in place counts up the version of a weight.
        version = sum(weight._version for weight in policy.model.parameters())
        processes = Processes.current()
        if not processes.any(version != self._loaded):
            return
        weights = weights_of(policy)
        with processes.together():
            try:
                if self._engine is not None:
                    self._engine.load(weights)
            finally:
                # The others of a divided policy wait for this process's part of every weight.
                deque(weights, maxlen=0)
        self._loaded = version

    def _answers(self, requests: list[Request]) -> list[list[Sampled]]:
        processes = Processes.current()
        if not self._samples_for_all or processes.size == 1:
            with processes.together():
                return self._generated(requests)
        asked = processes.gather_objects([request.to_json() for request in requests])
        answers: list[list[Sampled]] = []
        with processes.together():
            if processes.is_main:
                everyone = [Request.from_json(one) for each in asked for one in each]
                answers = self._generated(everyone)
        first, *_ = processes.gather_objects(answers)
        start = sum(len(each) for each in asked[: processes.rank])
        own = first[start : start + len(requests)]
        return [[Sampled(*response) for response in group] for group in own]

    def _generated(self, requests: list[Request]) -> list[list[Sampled]]:
        assert self._engine is not None
        return self._engine.generate(requests)

    def _evaluated(
        self, policy: Policy, prompts: Inputs, answers: list[list[Sampled]]
    ) -> Completions:
        responses = [response for group in answers for response in group]
        longest = max(1, *(len(response.tokens) for response in responses))

        def table(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> torch.Tensor:
            padded = [[*row, *[fill] * (longest - len(row))] for row in rows]
            return torch.tensor(padded, dtype=dtype, device=policy.device)

        padding = policy.tokenizer.pad_token_id
        tokens = table([each.tokens for each in responses], padding, torch.int64)
        sampled = table([each.logprobs for each in responses], 0.0, torch.float32)
        mask = table([[1.0] * len(each.tokens) for each in responses], 0.0, torch.bool)
        sizes = torch.tensor([len(group) for group in answers], device=policy.device)
        groups = torch.arange(len(answers), device=policy.device).repeat_interleave(sizes)
        nothing = torch.zeros_like(sampled)
        batch = Batch(prompts, groups, tokens, mask, sampled, nothing, nothing[:, 0], None, groups)
        logprobs, entropies = evaluated(batch, policy, self._description)
        return Completions(
            tokens=tokens,
            mask=mask,
            logprobs=logprobs,
            entropies=entropies,
            texts=response_texts(policy, [each.tokens for each in responses]),
            ended=torch.tensor([each.ended for each in responses], device=policy.device),
            sampler_logprobs=sampled,
        )


def importance_weights(completions: Completions, options: Rollout) -> torch.Tensor | None:
    """Return the factor of each token in the surrogates, (N, T), as the options say.

    None where the policy itself has sampled, or the mode is ``off``: nothing is weighted.
    """
    is_off = options.vllm_importance_sampling_mode == "off"
    if completions.sampler_logprobs is None or is_off:
        return None
    return _corrected(completions, options)[0]


def sampler_metrics(completions: Completions, options: Rollout) -> dict[str, float]:
    """Return how far the sampler is from the policy: nothing where they are the same.

    Parameters
    ----------
    completions : Completions
        This process's responses; every process must call this, and gets the values of all.
    options : Rollout
        The mode and the bounds of the ratio. With the mode ``off`` it is that of each token.
    """
    if completions.sampler_logprobs is None:
        return {}
    processes, sums = Processes.current(), {}
    _, metrics = _corrected(completions, options)
    tokens = int(completions.mask.sum())
    is_by_token = options.vllm_importance_sampling_mode.startswith(("token", "off"))
    units = tokens if is_by_token else int(completions.mask.any(-1).sum())
    extremes = ("sampler/ratio/min", "sampler/ratio/max")
    by_token = ("sampler/kl", "sampler/frac_masked")
    if tokens:
        for name, value in metrics.items():
            count = tokens if name in by_token else units
            sums[name] = float(value) * (1 if name in extremes else count)
    found = processes.add_up({**sums, "tokens": tokens, "units": units})
    tokens, units = found.pop("tokens"), found.pop("units")
    return {
        name: value if name in extremes else value / (tokens if name in by_token else units)
        for name, value in found.items()
    }


def _corrected(
    completions: Completions, options: Rollout
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    values = (completions.logprobs, completions.sampler_logprobs, completions.mask)
    if options.vllm_importance_sampling_mode == "off":
        return g2rpo.sampler_weights(*values, level="token", mode="truncate", high=None)
    level, mode = options.vllm_importance_sampling_mode.split("_")
    return g2rpo.sampler_weights(
        *values,
        level=level,  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        low=options.vllm_importance_sampling_clip_min,
        high=options.vllm_importance_sampling_clip_max,
    )
