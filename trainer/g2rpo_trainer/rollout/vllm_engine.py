"""vLLM in this process: that of the training, or one that a run starts (``vllm_server``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from g2rpo_trainer.errors import RunError

from .requests import Request, Sampled

# Of what vLLM says, in letters: some of its errors list all layers of a model.
_LONGEST_REASON = 400


class VLLMOptions(NamedTuple):
    """What vLLM is told when it starts.

    Attributes
    ----------
    model : str
        Folder, or model of the hub.
    dtype : str
        Of its weights.
    trust_remote_code : bool
        Whether code of the model may run.
    memory : float
        Share of the GPU's memory that it takes.
    max_model_len : int or None
        Longest prompt and response together in tokens; None is the model's context.
    seed : int
        Of what has none of its own.
    sleeps : bool
        Whether it gives its memory back between the rollouts, to a policy on the same GPU.
    has_neighbours : bool
        Whether other processes that a launcher has started have an engine too.
    """

    model: str
    dtype: str
    trust_remote_code: bool
    memory: float
    max_model_len: int | None
    seed: int
    sleeps: bool
    has_neighbours: bool


class VLLMEngine:
    """An engine that computes in this process.

    Parameters
    ----------
    options : VLLMOptions
        How it starts.

    Raises
    ------
    RunError
        If vLLM is not installed, or cannot start with this model or in this memory.
    """

    def __init__(self, options: VLLMOptions) -> None:
        # In this process, so that weights are handed over without a copy through a pipe.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            import vllm
        except ImportError as error:
            raise RunError(
                f"rollout.engine is 'vllm', which cannot be imported ({error}); pip install vllm, "
                "or name 'transformers'"
            ) from error
        self._params: Any = vllm.SamplingParams
        with _random_numbers_kept(), _told(options):
            self._llm: Any = vllm.LLM(**engine_arguments(options))
        self._asleep: set[str] = set()
        self._sleeps = options.sleeps
        self._sleep()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy weights over the engine's, and forget what was cached of the old."""
        self._wake("weights")
        # Unlike the model's own method this one also redoes what a kernel has repacked.
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        # The workers have forgotten theirs, and the scheduler must know.
        self._llm.llm_engine.reset_encoder_cache()

    def generate(self, requests: Sequence[Request]) -> list[list[Sampled]]:
        """Sample, and put the engine to sleep again."""
        if not requests:
            return []
        self._wake("weights", "kv_cache")
        prompts = [prompt_of(request) for request in requests]
        parameters = [self._params(**sampling_options(request)) for request in requests]
        with _random_numbers_kept():
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        self._sleep()
        for request, output in zip(requests, outputs, strict=True):
            require_same_prompt(request, output.prompt_token_ids)
        return [[as_sampled(response) for response in output.outputs] for output in outputs]

    def close(self) -> None:
        """End vLLM, and with it all groups of processes: nothing is gathered from then on."""
        self._llm.llm_engine.engine_core.shutdown()

    def _sleep(self) -> None:
        if self._sleeps:
            # Weights go to the machine's memory, so that a second try need not load them again.
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        for part in parts:
            if part in self._asleep:
                self._llm.wake_up(tags=[part])
                self._asleep.remove(part)


def engine_arguments(options: VLLMOptions) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``."""
    return {
        "model": options.model,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
        "gpu_memory_utilization": options.memory,
        "max_model_len": options.max_model_len,
        "enable_sleep_mode": options.sleeps,
        # vLLM's own defaults, not those of the model's folder.
        "generation_config": "vllm",
        # Those of the distribution that was sampled: after temperature and bans.
        "logprobs_mode": "processed_logprobs",
        "seed": options.seed,
        # Each process of a launcher has an engine to itself, and keeps to its own GPU.
        "distributed_executor_backend": "external_launcher" if options.has_neighbours else "uni",
    }


def sampling_options(request: Request) -> dict[str, Any]:
    """Return vLLM's sampling parameters of one request."""
    return {
        "n": request.num_generations,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_tokens": request.max_tokens,
        # The sampled token's own.
        "logprobs": 0,
        "stop_token_ids": request.eos_ids,
        "stop": request.stops or None,
        "include_stop_str_in_output": True,
        # Text is needed only to find the end in, which may be a special token.
        "detokenize": bool(request.stops),
        "skip_special_tokens": False,
        # The lowest there is: as good as never.
        "logit_bias": dict.fromkeys(request.banned_ids, -100.0),
    }


def prompt_of(request: Request) -> dict[str, Any]:
    """Return the prompt as vLLM takes it: tokens, with the images that belong to them."""
    if request.images:
        data = {"image": request.images}
        return {"prompt_token_ids": request.prompt, "multi_modal_data": data}
    return {"prompt_token_ids": request.prompt}


def require_same_prompt(request: Request, tokens: Sequence[int]) -> None:
    """Raise `RunError` if vLLM has read a prompt otherwise than the policy.

    Which token stands for a part of an image may differ, as its embedding is put in its place.
    """
    placeholders = set(request.banned_ids)

    def shown(ids: Sequence[int]) -> list[int]:
        return [-1 if token in placeholders else token for token in ids]

    if shown(tokens) != shown(request.tokens):
        raise RunError(
            f"vLLM reads a prompt of {len(request.tokens)} tokens and {len(request.images)} images "
            f"as {len(tokens)} tokens, unlike the policy, so its responses would be to another "
            "prompt; with this model name rollout.engine: transformers"
        )


def as_sampled(response: Any) -> Sampled:
    """Return one of vLLM's outputs; each place holds the log-probability of its token."""
    tokens = list(response.token_ids)
    logprobs = [
        place[token].logprob for token, place in zip(tokens, response.logprobs, strict=True)
    ]
    return Sampled(tokens, logprobs, response.finish_reason == "stop")


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    # vLLM sets the seed of the whole process when it starts.
    with torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def _told(options: VLLMOptions) -> Iterator[None]:
    """Turn what vLLM raises at its start into an error that says what to change."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise RunError(
            f"vLLM cannot start with {options.model} ({reason}); change rollout.vllm_memory "
            f"(it is {options.memory}), set rollout.max_prompt_length to what the prompts need, or "
            "name rollout.engine: transformers"
        ) from error
