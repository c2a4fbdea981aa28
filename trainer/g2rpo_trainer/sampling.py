"""Sample responses with the policy itself, and record the distribution of every token.

The steps: the prompts of the records are prefilled once (:mod:`.prefill`), ``generate`` decodes,
:class:`Draws` draws each token and records its log-probability and entropy, and
:class:`~g2rpo_trainer.stopping.ResponseEnds` ends each response.

The logits of generation already hold the old log-probabilities of the surrogate and the exact
entropies, so no further forward pass is spent on either.

There is no top-k and no top-p: responses would come from another distribution than the one that
the surrogate compares with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)

import g2rpo
from g2rpo_trainer.config import Rollout
from g2rpo_trainer.record import Record

from .distributed import Share
from .model.policy_model import Policy
from .prefill import expanded_prompts
from .prompts.batching import Inputs, select_rows, trim_padding
from .sharding import is_sharded
from .stopping import ResponseEnds, response_texts


@dataclass(frozen=True)
class Completions:
    """N sampled responses of at most T tokens.

    Attributes
    ----------
    tokens : Tensor (N, T), int64
        Padded on the right.
    mask : Tensor (N, T), bool
        True at the tokens of the response, its end token included.
    logprobs : Tensor (N, T), float32
        Log-probability in nats of each token under the distribution it came from; 0 at padding.
    entropies : Tensor (N, T), float32
        Exact entropy in nats of the distribution each token was drawn from; 0 at padding.
    texts : list of str
        Decoded responses, without what closes the turn.
    ended : Tensor (N,), bool
        False where the response was cut off at its length limit.
    sampler_logprobs : Tensor (N, T) or None
        Log-probability of each token under vLLM, if vLLM has sampled it.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    texts: list[str]
    ended: torch.Tensor
    sampler_logprobs: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """Response lengths in tokens, (N,) int64."""
        return self.mask.sum(-1)

    def rows(self, rows: torch.Tensor) -> Completions:
        """Return some of the responses."""
        return Completions(
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            logprobs=self.logprobs[rows],
            entropies=self.entropies[rows],
            texts=[self.texts[row] for row in rows.tolist()],
            ended=self.ended[rows],
            sampler_logprobs=None if self.sampler_logprobs is None else self.sampler_logprobs[rows],
        )


class Sampler(Protocol):
    """Samples the training responses: :func:`sample_with_policy`, or vLLM.

    vLLM is :class:`g2rpo_trainer.vllm.VLLMSampler`.
    """

    def __call__(
        self,
        policy: Policy,
        prompts: Inputs,
        records: Sequence[Record],
        options: Rollout,
        share: Share | None = None,
        /,
    ) -> Completions:
        """Return responses to the P prompts of records, those of one prompt next to each other.

        With several processes each samples its share, as in :func:`sample`.
        """


class _Decoding(NamedTuple):
    """Arguments of one call of ``generate`` with N rows, beside their prompts."""

    limits: torch.Tensor  # (N,) int64
    uniforms: torch.Tensor  # (N, T) float64
    temperature: float
    stop: str | None = None


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Inputs,
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float = 1.0,
    limits: Sequence[int] | None = None,
    stop: str | None = None,
    batch_size: int | None = None,
    share: Share | None = None,
) -> Completions:
    """Sample ``num_generations`` responses to every prompt.

    Parameters
    ----------
    policy : Policy
        Policy to sample.
    prompts : dict of str to Tensor
        P prompts from :func:`~g2rpo_trainer.prompts.encode_prompts`.
    num_generations : int
        Responses to each prompt.
    max_completion_length : int
        Longest response in tokens.
    temperature : float
        Sampling temperature; 1 samples from the policy itself.
    limits : sequence of int, optional
        Longest response to each prompt in tokens, where it is shorter.
    stop : str, optional
        The token that completes this text is the last of its response.
    batch_size : int, optional
        Most rows of one call of ``generate``, in whole prompts; by default all at once.
    share : Share, optional
        This rank's part of a batch that several ranks divide; the prompts are those of
        ``share.padded``. They get the random numbers that they would have on a single rank.
        Responses to the repeated prompts, which pad the share, are not returned.

    Returns
    -------
    Completions
        N = P · num_generations rows, those of one prompt next to each other, where P counts the
        prompts of ``share.own`` if there is a share.

    Notes
    -----
    Each token is drawn by a random number of its own, which follows from its row and place and not
    from ``batch_size``. Responses then differ with it only where rounding changes a probability
    across that number.
    """
    count = len(prompts["input_ids"])
    total = count if share is None else share.total
    shape = (total, num_generations, max_completion_length)
    uniforms = torch.rand(shape, dtype=torch.float64)
    if share is not None:
        uniforms = uniforms[list(share.padded)]
    uniforms = uniforms.to(policy.device, wide_dtype(policy.device))
    longest = torch.full((count,), max_completion_length)
    if limits is not None:
        longest = longest.minimum(torch.tensor(limits))
    longest = longest.to(policy.device)[:, None].expand(-1, num_generations)
    each = count if batch_size is None else max(1, batch_size // num_generations)
    parts = []
    for start in range(0, count, each):
        rows = slice(start, start + each)
        some = trim_padding(select_rows(prompts, rows))
        drawn = uniforms[rows].flatten(0, 1)
        decoding = _Decoding(longest[rows].flatten(), drawn, temperature, stop)
        parts.append(_sample(policy, _repeated(policy, some, num_generations), decoding))
    completions = concatenated(parts)
    if share is None or share.own == share.padded:
        return completions
    return completions.rows(torch.arange(len(share.own) * num_generations, device=policy.device))


def sample_with_policy(
    policy: Policy,
    prompts: Inputs,
    records: Sequence[Record],
    options: Rollout,
    share: Share | None = None,
) -> Completions:
    """Sample responses to the prompts of P records by the options of the section ``rollout``."""
    return sample(
        policy,
        prompts,
        num_generations=options.num_generations,
        max_completion_length=options.max_completion_length,
        temperature=options.temperature,
        limits=[options.limit_of(record.task) for record in records],
        stop=options.stop,
        batch_size=options.batch_size,
        share=share,
    )


def concatenated(parts: Sequence[Completions]) -> Completions:
    """Return the rows of all parts, padded on the right to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[1] for part in parts)

    def wide(columns: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([pad(column, (0, longest - column.shape[1])) for column in columns])

    sampled = [part.sampler_logprobs for part in parts if part.sampler_logprobs is not None]
    return Completions(
        tokens=wide(part.tokens for part in parts),
        mask=wide(part.mask for part in parts),
        logprobs=wide(part.logprobs for part in parts),
        entropies=wide(part.entropies for part in parts),
        texts=[text for part in parts for text in part.texts],
        ended=torch.cat([part.ended for part in parts]),
        sampler_logprobs=wide(sampled) if len(sampled) == len(parts) else None,
    )


def _repeated(policy: Policy, prompts: Inputs, num_generations: int) -> dict[str, Any]:
    """Return the inputs of ``num_generations`` rows for each prompt."""
    count, prompt_length = prompts["input_ids"].shape
    can_share = num_generations > 1 and prompt_length > 1
    if can_share and policy.shortcuts.shared_rollouts:
        return expanded_prompts(policy, prompts, num_generations)
    rows = torch.arange(count, device=policy.device).repeat_interleave(num_generations)
    return select_rows(prompts, rows)


def _sample(policy: Policy, inputs: dict[str, Any], decoding: _Decoding) -> Completions:
    """Sample one response to each of N rows; the prompts may be prefilled."""
    prompt_length = inputs["input_ids"].shape[1]
    draws = Draws(policy, decoding.uniforms, decoding.temperature)
    ends = ResponseEnds(policy, prompt_length, decoding.limits, decoding.stop)
    with _plain_decoding(policy, max_new_tokens=int(decoding.limits.max())) as settings:
        generated = policy.model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=StoppingCriteriaList([ends]),
            # Ranks of a sharded model run the same number of forward passes.
            synced_gpus=is_sharded(policy.model),
        )
    tokens = generated[:, prompt_length:]
    lengths, ended = ends.of(tokens)
    # Some devices notice a few tokens late that all responses are complete.
    tokens = tokens[:, : int(lengths.max())]
    mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    sampled = zip(tokens.tolist(), lengths.tolist(), strict=True)
    texts = response_texts(policy, [row[:length] for row, length in sampled])
    logprobs, entropies = (values[:, : tokens.shape[1]] for values in draws.values())
    return Completions(
        tokens=tokens,
        mask=mask,
        logprobs=torch.where(mask, logprobs, 0.0),
        entropies=torch.where(mask, entropies, 0.0),
        texts=texts,
        ended=ended,
    )


@torch.no_grad()
def sample_endless(policy: Policy, inputs: dict[str, Any], uniforms: torch.Tensor) -> Completions:
    """Sample T tokens to each of N rows, whose prompts are encoded already or not.

    No token ends a response here. ``uniforms`` (N, T) from 0 to 1 draw the tokens.
    """
    limits = torch.full((len(uniforms),), uniforms.shape[1], device=policy.device)
    no_token = policy.model.config.get_text_config().vocab_size
    endless = replace(policy, eos_ids=(no_token,), closing_text=None)
    return _sample(endless, inputs, _Decoding(limits, uniforms.to(policy.device), 1.0))


@contextmanager
def _plain_decoding(policy: Policy, *, max_new_tokens: int) -> Iterator[GenerationConfig]:
    """Replace the model's own generation settings, inside the context, by those of the run.

    The recorded log-probabilities must be those of the distribution that was sampled. `generate`
    takes from the model's settings whatever its argument leaves open, so they cannot stay.
    """
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        # `Draws` leaves a single token to choose.
        do_sample=False,
        eos_token_id=list(policy.eos_ids) or None,
        pad_token_id=policy.tokenizer.pad_token_id,
    )
    own = policy.model.generation_config
    policy.model.generation_config = settings
    try:
        yield settings
    finally:
        policy.model.generation_config = own


class Draws(LogitsProcessor):
    """Draw the tokens, and record their log-probabilities and entropies.

    ``generate`` then decodes greedily: the score of the token drawn is 1, that of all others 0.

    Parameters
    ----------
    policy : Policy
        Policy that is sampled.
    uniforms : Tensor (N, T)
        Random numbers from 0 to below 1, one for each token.
    temperature : float
        Sampling temperature.
    """

    def __init__(self, policy: Policy, uniforms: torch.Tensor, temperature: float) -> None:
        self._policy, self._uniforms, self._temperature = policy, uniforms, temperature
        self._logprobs: list[torch.Tensor] = []
        self._entropies: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (N, V), uint8: 1 at the token of each row, else 0."""
        logits = self._policy.masked_logits(scores, self._temperature)
        logprobs = logits.log_softmax(-1)
        # Some devices take one step more than there are tokens, and forget it.
        place = min(len(self._logprobs), self._uniforms.shape[1] - 1)
        tokens = draw(logprobs, self._uniforms[:, place])[:, None]
        self._logprobs.append(logprobs.gather(-1, tokens)[:, 0])
        self._entropies.append(g2rpo.entropy_from_logits(logits))
        # The highest of bytes is found in half the time of the highest logit.
        return torch.zeros_like(logits, dtype=torch.uint8).scatter_(-1, tokens, 1)

    def values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies of all tokens drawn, (N, T)."""
        return torch.stack(self._logprobs, dim=1), torch.stack(self._entropies, dim=1)


def draw(logprobs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw a token of each row by inversion: the first at which the summed probability passes u.

    Parameters
    ----------
    logprobs : Tensor (N, V)
        Log-probabilities in nats; −inf for a token that is never drawn.
    uniforms : Tensor (N,)
        From 0 to below 1.

    Returns
    -------
    Tensor (N,), int64

    Examples
    --------
    >>> logprobs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(3, 4)
    >>> draw(logprobs, torch.tensor([0.1, 0.25, 0.8]))
    tensor([0, 2, 3])
    """
    # Summed in double precision, because the rare tokens of 150,000 are lost next to 1 in float32.
    cumulative = logprobs.exp().cumsum(-1, dtype=wide_dtype(logprobs.device))
    passed = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, passed, right=True)[:, 0]
    return tokens.clamp(max=logprobs.shape[-1] - 1)


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
