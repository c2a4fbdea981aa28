"""Prompts in the form that vLLM takes, and the check that it reads them as the policy does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from g2rpo_trainer.config import Rollout
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record

from .model.policy_model import Policy
from .prompts.batching import Inputs
from .prompts.chat import chat_of
from .stopping import stop_texts


class Request(NamedTuple):
    """One prompt, as vLLM takes it.

    Attributes
    ----------
    prompt : dict
        Token ids of the chat with a single placeholder for each image, and the images.
    sampling : dict
        Arguments of ``vllm.SamplingParams``.
    tokens : list of int
        Token ids of the prompt as the policy reads it, with all placeholders.
    """

    prompt: dict[str, Any]
    sampling: dict[str, Any]
    tokens: list[int]


def make_requests(
    policy: Policy,
    prompts: Inputs,
    records: Sequence[Record],
    options: Rollout,
    seeds: Sequence[int],
) -> list[Request]:
    """Return the requests of P records.

    Parameters
    ----------
    policy : Policy
        Its chat template, tokenizer, end tokens and banned tokens are used.
    prompts : dict of str to Tensor
        Model inputs of the records.
    records : sequence of Record
        The prompts.
    options : Rollout
        Sampling options.
    seeds : sequence of int
        One for each record.

    Raises
    ------
    RunError
        If one of them has a video.
    """
    stops = stop_texts(policy, options.stop)
    shared = {
        "n": options.num_generations,
        "temperature": options.temperature,
        "top_p": 1.0,
        "top_k": -1,
        # The sampled token's own.
        "logprobs": 0,
        "stop_token_ids": list(policy.eos_ids),
        "stop": stops or None,
        "include_stop_str_in_output": True,
        # Text is needed only to find the end in, which may be a special token.
        "detokenize": bool(stops),
        "skip_special_tokens": False,
        # The lowest there is: as good as never.
        "logit_bias": dict.fromkeys(policy.banned_ids.tolist(), -100.0),
    }
    rows = zip(prompts["input_ids"], prompts["attention_mask"].bool(), records, seeds, strict=True)
    requests = []
    for ids, mask, record, seed in rows:
        if record.videos:
            raise RunError(
                f"rollout.engine is 'vllm', which takes no videos (task {record.task}); "
                "name 'transformers', or leave these records out"
            )
        images, tokens = list(record.images), ids[mask].tolist()
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if images:
            one_each = _with_one_placeholder_each(policy, record)
            prompt = {"prompt_token_ids": one_each, "multi_modal_data": {"image": images}}
        limit = options.limit_of(record.task)
        requests.append(Request(prompt, {**shared, "seed": seed, "max_tokens": limit}, tokens))
    return requests


def require_same_prompt(request: Request, tokens: Sequence[int]) -> None:
    """Raise `RunError` if vLLM has read a prompt as other tokens than the policy.

    The placeholder ids of an image may differ, since embeddings take their places.
    """
    placeholders = set(request.sampling["logit_bias"])

    def shown(ids: Sequence[int]) -> list[int]:
        return [-1 if token in placeholders else token for token in ids]

    if shown(tokens) != shown(request.tokens):
        images = len(request.prompt.get("multi_modal_data", {}).get("image", ()))
        raise RunError(
            f"vLLM reads a prompt of {len(request.tokens)} tokens and {images} images "
            f"as {len(tokens)} tokens, unlike the policy, so its responses would be to another "
            "prompt; with this model name rollout.engine: transformers"
        )


def _with_one_placeholder_each(policy: Policy, record: Record) -> list[int]:
    # As a processor begins: what it adds to a text is what the tokenizer adds.
    text, begins = chat_of(policy, record).text, policy.tokenizer.bos_token
    has_begun = bool(begins) and text.startswith(begins)
    tokens: list[int] = policy.tokenizer(text, add_special_tokens=not has_begun)["input_ids"]
    return tokens
