"""Sample responses with the policy itself, and record the distribution of every token.

The steps: the prompts of the records are prefilled once (:mod:`.prefill`). ``generate`` decodes,
or on a GPU :func:`~g2rpo_trainer.decoding.decode`. :class:`~g2rpo_trainer.draws.Draws` draws each
token and records its log-probability and entropy, and
:class:`~g2rpo_trainer.stopping.ResponseEnds` ends each response.

The logits of generation already hold the old log-probabilities of the surrogate and the exact
entropies, so no further forward pass is spent on either.
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
    LogitsProcessorList,
    StoppingCriteriaList,
)

from g2rpo_trainer.config import Rollout
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record

from .decoding import Prefilled, decode, prefilled
from .device import free_memory
from .distributed import Share
from .draws import Draws, wide_dtype
from .estimate import rows_that_fit
from .model.head import float32_logits
from .model.policy_model import Policy
from .model_shape import kv_cache
from .packing import packing_obstacle
from .prefill import expanded_prompts
from .prompts.batching import Inputs, pad_left, select_rows, trim_padding
from .sharding import gathered, is_sharded
from .stopping import ResponseEnds, response_texts

Rows = dict[str, Any] | Prefilled
"""N rows to sample responses to: inputs of ``generate``, or prompts in buffers of a fixed size."""


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
        *,
        with_values: bool = True,
    ) -> Completions:
        """Return responses to the P prompts of records, those of one prompt next to each other.

        With several processes each samples its share, as in :func:`sample`. Log-probabilities and
        entropies may be 0 if they take passes of their own and are not wanted (``with_values``).
        """


class _Decoding(NamedTuple):
    """Arguments of one call of ``generate`` with N rows, beside their prompts."""

    limits: torch.Tensor  # (N,) int64
    uniforms: torch.Tensor  # (N, T) float64
    temperature: float
    stop: str | None = None
    in_lockstep: bool = False  # ranks run the same number of forward passes


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
        Most rows that are decoded together, in whole prompts; by default all at once, or on a GPU
        as many as its free memory holds.
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
    if batch_size is None:
        width = prompts["input_ids"].shape[1] + max_completion_length
        batch_size = fitting_rows(policy, width)
    each = count if batch_size is None else max(1, batch_size // num_generations)
    parts = []
    with gathered(policy.model) as is_free:
        for start in range(0, count, each):
            rows = slice(start, start + each)
            some = trim_padding(select_rows(prompts, rows))
            drawn = uniforms[rows].flatten(0, 1)
            decoding = _Decoding(longest[rows].flatten(), drawn, temperature, stop, not is_free)
            parts.append(_sample(policy, _rows(policy, some, num_generations, decoding), decoding))
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
    *,
    with_values: bool = True,
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


def fitting_rows(policy: Policy, width: int) -> int | None:
    """Return how many rows of so many tokens a GPU can decode at a time; None for no bound.

    A sharded policy has none: its ranks decode the same numbers of rows. Nor has a deterministic
    run, which must not depend on what else is on the GPU.
    """
    free = free_memory(policy.device)
    is_fixed = is_sharded(policy.model) or torch.are_deterministic_algorithms_enabled()
    if free is None or is_fixed:
        return None
    vocabulary = policy.model.config.get_text_config().vocab_size
    row = kv_cache(policy.model).bytes(1, policy.buffer_size(width))
    return rows_that_fit(row, vocabulary, free)


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


def prepared_rows(
    policy: Policy,
    prompts: Inputs,
    num_generations: int,
    max_new_tokens: int,
    *,
    in_lockstep: bool = False,
) -> Rows:
    """Prefill P prompts once, and return ``num_generations`` rows for each.

    Raises
    ------
    TypeError
        As :func:`~g2rpo_trainer.prefill.expanded_prompts`.
    """
    is_static = policy.pad_to_multiple_of > 1 and packing_obstacle(policy.model) is None
    if not is_static or in_lockstep:
        return expanded_prompts(policy, prompts, num_generations)
    columns = policy.padding(prompts["input_ids"].shape[1] - 1)
    aligned = pad_left(prompts, columns, policy.tokenizer.pad_token_id)
    return prefilled(policy, aligned, num_generations, max_new_tokens)


def _rows(policy: Policy, prompts: Inputs, num_generations: int, decoding: _Decoding) -> Rows:
    """Return ``num_generations`` rows for each prompt, prefilled if the policy allows it."""
    count, prompt_length = prompts["input_ids"].shape
    is_worth_it = num_generations > 1 or policy.pad_to_multiple_of > 1
    if is_worth_it and prompt_length > 1 and policy.shortcuts.shared_rollouts:
        longest, lockstep = int(decoding.limits.max()), decoding.in_lockstep
        return prepared_rows(policy, prompts, num_generations, longest, in_lockstep=lockstep)
    rows = torch.arange(count, device=policy.device).repeat_interleave(num_generations)
    return select_rows(prompts, rows)


def _sample(policy: Policy, rows: Rows, decoding: _Decoding) -> Completions:
    """Sample one response to each of N rows."""
    draws = Draws(policy, decoding.uniforms, decoding.temperature)
    with float32_logits(policy.model):
        if isinstance(rows, Prefilled):
            ends = ResponseEnds(policy, 0, decoding.limits, decoding.stop)
            longest = int(decoding.limits.max())
            tokens = decode(policy, rows, draws.tokens, ends.all_complete, longest)
        else:
            prompt_length = rows["input_ids"].shape[1]
            ends = ResponseEnds(policy, prompt_length, decoding.limits, decoding.stop)
            tokens = _generated(policy, rows, draws, ends, decoding)[:, prompt_length:]
    lengths, ended = ends.of(tokens)
    # Some devices notice a few tokens late that all responses are complete.
    tokens = tokens[:, : int(lengths.max())]
    mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    sampled = zip(tokens.tolist(), lengths.tolist(), strict=True)
    texts = response_texts(policy, [row[:length] for row, length in sampled])
    logprobs, entropies = (values[:, : tokens.shape[1]] for values in draws.values())
    logprobs = torch.where(mask, logprobs, 0.0)
    if logprobs.isnan().any():
        raise RunError(
            "the policy's logits are not finite, so nothing can be sampled: a weight is not finite "
            "or the computation overflows; go on from an earlier checkpoint, or in a new run lower "
            "optimization.learning_rate, and with model.dtype bfloat16 try float32"
        )
    return Completions(
        tokens=torch.where(mask, tokens, policy.tokenizer.pad_token_id),
        mask=mask,
        logprobs=logprobs,
        entropies=torch.where(mask, entropies, 0.0),
        texts=texts,
        ended=ended,
    )


def _generated(
    policy: Policy, inputs: dict[str, Any], draws: Draws, ends: ResponseEnds, decoding: _Decoding
) -> torch.Tensor:
    """Return the tokens (N, L + T) of rows and their responses, decoded by ``generate``."""
    with _plain_decoding(policy, max_new_tokens=int(decoding.limits.max())) as settings:
        generated: torch.Tensor = policy.model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=StoppingCriteriaList([ends]),
            synced_gpus=decoding.in_lockstep,
        )
    return generated


@torch.no_grad()
def sample_endless(policy: Policy, rows: Rows, uniforms: torch.Tensor) -> Completions:
    """Sample T tokens to each of N rows, prefilled or not.

    No token ends a response here. ``uniforms`` (N, T) from 0 to 1 draw the tokens.
    """
    limits = torch.full((len(uniforms),), uniforms.shape[1], device=policy.device)
    no_token = policy.model.config.get_text_config().vocab_size
    endless = replace(policy, eos_ids=(no_token,), closing_text=None)
    return _sample(endless, rows, _Decoding(limits, uniforms.to(policy.device), 1.0))


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
