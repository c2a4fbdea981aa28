"""Sample responses, and keep what the update needs to know of the distribution they came from.

The logits of generation already hold the old log-probabilities of the surrogate and the exact
entropies, so no further forward pass is spent on either. A prompt is encoded once for all of its
responses where the model allows it.

There is no top-k and no top-p: responses would come from another distribution than the one that
the surrogate compares with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from g2rpo_trainer.config import Rollout
from g2rpo_trainer.record import Record
from g2rpo_trainer.run.metrics import Outcomes

from ..distributed.processes import Share
from ..distributed.sharding import is_sharded
from ..inputs.prompts import Inputs, first_with_images, select_rows, trim_padding
from ..model.policy_model import Policy
from ..model.trials import disagreement
from ..passes.forward import plain_predictions
from .drawing import Draws, wide_dtype
from .prefill import expanded_prompts
from .stopping import ResponseEnds, response_texts


class Completions(NamedTuple):
    """N sampled responses of at most T tokens.

    Attributes
    ----------
    tokens : Tensor (N, T), int64
        Padded on the right.
    mask : Tensor (N, T), bool
        True at the response's tokens, its end token included.
    logprobs : Tensor (N, T), float32
        Log-probability in nats of each token under the distribution it came from; 0 at padding.
    entropies : Tensor (N, T), float32
        Exact entropy in nats of the distribution each token was drawn from; 0 at padding.
    texts : list of str
        Decoded responses, without what closes the turn.
    ended : Tensor (N,), bool
        False where the response was cut off at its length limit.
    sampler_logprobs : Tensor (N, T) or None
        Log-probability of each token where it was sampled, if that was not the policy itself.
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

    def outcomes(self) -> Outcomes:
        """Return what is reported of them."""
        columns = (self.lengths, self.ended, self.entropies.sum(-1))
        return Outcomes(*(column.cpu().numpy() for column in columns))

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


class _Request(NamedTuple):
    """What is asked of one call of ``generate`` with N rows beside their prompts."""

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
        Whose model is sampled.
    prompts : dict of str to Tensor
        P prompts from :func:`~g2rpo_trainer.prompts.encode_prompts`.
    num_generations : int
        Responses to each prompt.
    max_completion_length : int
        Longest response in tokens.
    temperature : float
        Of the sampling; 1 samples from the policy itself.
    limits : sequence of int, optional
        Longest response to each prompt, where it is shorter.
    stop : str, optional
        The token that completes this text is the last of its response.
    batch_size : int, optional
        Most rows of one call of ``generate``, in whole prompts; by default all at once.
    share : Share, optional
        Which of a batch that several processes divide the prompts are, those of ``share.padded``:
        they get the random numbers that they would have if one process had the batch. Repeats are
        sampled like the others, and left out of what is returned.

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
        request = _Request(longest[rows].flatten(), drawn, temperature, stop)
        parts.append(_sample(policy, _repeated(policy, some, num_generations), request))
    completions = concatenated(parts)
    if share is None or share.own == share.padded:
        return completions
    return completions.rows(torch.arange(len(share.own) * num_generations, device=policy.device))


def sample_as_described(
    policy: Policy,
    prompts: Inputs,
    records: Sequence[Record],
    options: Rollout,
    share: Share | None = None,
) -> Completions:
    """Sample responses to the prompts of P records as a run's section ``rollout`` says."""
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
    if can_share and policy.trials.allows("rollout", lambda: prefill_trial(policy, prompts)):
        return expanded_prompts(policy, prompts, num_generations)
    rows = torch.arange(count, device=policy.device).repeat_interleave(num_generations)
    return select_rows(prompts, rows)


def _sample(policy: Policy, inputs: dict[str, Any], request: _Request) -> Completions:
    """Sample one response to each of N rows, whose prompts are encoded already or not."""
    prompt_length = inputs["input_ids"].shape[1]
    draws = Draws(policy, request.uniforms, request.temperature)
    ends = ResponseEnds(policy, prompt_length, request.limits, request.stop)
    with _plain_decoding(policy, max_new_tokens=int(request.limits.max())) as settings:
        generated = policy.model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=StoppingCriteriaList([ends]),
            # Processes that share the layers go through them until the last one has all its tokens.
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
def prefill_trial(policy: Policy, prompts: Inputs) -> str | None:
    """Sample from one prompt, shared, and compare with the plain pass over the responses.

    Return what is in the way, or None.
    """
    first = first_with_images(prompts)
    prompt = select_rows(prompts, slice(first, first + 1))
    trial = trial_responses(policy, expanded_prompts(policy, prompt, 2))
    groups = torch.zeros(2, dtype=torch.int64, device=policy.device)
    logprobs, _ = plain_predictions(policy, prompt, groups, trial.tokens, trial.mask).values()
    return disagreement(trial.logprobs[trial.mask], logprobs[trial.mask], policy.model.dtype)


@torch.no_grad()
def trial_responses(policy: Policy, inputs: dict[str, Any]) -> Completions:
    """Sample four tokens to each of N rows, whose prompts are encoded already or not.

    Nothing ends a response here: a trained policy may end all of them at once, and processes that
    share a model must take the same number of steps.
    """
    count = len(inputs["input_ids"])
    limits = torch.full((count,), 4, device=policy.device)
    # Any numbers will do, but none from the run's own.
    uniforms = torch.linspace(0.1, 0.6, count, device=policy.device)[:, None].expand(-1, 4)
    no_token = policy.model.config.get_text_config().vocab_size
    endless = replace(policy, eos_ids=(no_token,), closing_text=None)
    return _sample(endless, inputs, _Request(limits, uniforms, 1.0))


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
