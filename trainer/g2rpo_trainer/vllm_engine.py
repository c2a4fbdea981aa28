"""vLLM in this process: its start, its weights, its responses, and its sleep between rollouts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from g2rpo._shown import error_text
from g2rpo_trainer.config import Model, Rollout
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.launch import Launch

from .device import environment_with, release_memory
from .estimate import VLLM_SHARE, vllm_share
from .model.policy_model import Policy
from .model_shape import kv_cache
from .vllm_requests import Request, require_same_prompt

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Characters of vLLM's own error text; some of its errors list all layers of a model.
_LONGEST_REASON = 400


class Sampled(NamedTuple):
    """One response of vLLM.

    Attributes
    ----------
    tokens : list of int
        Token ids, the end token included.
    logprobs : list of float
        Log-probability of each in nats under vLLM's distribution.
    ended : bool
        False where it was cut off at its length limit.
    """

    tokens: list[int]
    logprobs: list[float]
    ended: bool


class VLLMEngine:
    """vLLM in this process.

    Parameters
    ----------
    arguments : dict
        Arguments of ``vllm.LLM``, as :func:`engine_arguments` returns them. With
        ``enable_sleep_mode`` it gives its memory to the policy between the rollouts.
    device : torch.device
        Device of the policy, which vLLM shares.

    Raises
    ------
    RunError
        If vLLM is not installed, or cannot start with this model or in this memory.
    """

    def __init__(self, arguments: dict[str, Any], device: torch.device) -> None:
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
        self._vllm: Any = vllm
        with _random_numbers_kept(), _start_errors(arguments), _launched_on(device):
            self._llm: Any = vllm.LLM(**arguments)
        self._adapter: dict[str, Any] = {}
        self._asleep: set[str] = set()
        self._sleeps: bool = arguments["enable_sleep_mode"]
        self._sleep()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy weights over the engine's, and drop what was cached of the old ones."""
        self._wake("weights")
        # Unlike the model's own method this one also redoes what a kernel has repacked.
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        # The workers have dropped theirs, and the scheduler must know.
        self._llm.llm_engine.reset_encoder_cache()

    def load_adapter(self, folder: Path, number: int) -> None:
        """Sample with the adapter in a folder from now on; numbers from 1 must be new ones."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(f"policy-{number}", number, str(folder))
        self._adapter = {"lora_request": request}
        self._llm.reset_prefix_cache()

    def generate(self, requests: Sequence[Request]) -> list[list[Sampled]]:
        """Sample the responses to each prompt, and put the engine to sleep again."""
        if not requests:
            return []
        self._wake("weights", "kv_cache")
        prompts = [request.prompt for request in requests]
        parameters = [self._vllm.SamplingParams(**request.sampling) for request in requests]
        with _random_numbers_kept():
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False, **self._adapter)
        self._sleep()
        for request, output in zip(requests, outputs, strict=True):
            require_same_prompt(request, output.prompt_token_ids)
        return [[_as_sampled(response) for response in output.outputs] for output in outputs]

    def close(self) -> None:
        """End vLLM, and with it all process groups: no collective may follow."""
        self._llm.llm_engine.engine_core.shutdown()

    def _sleep(self) -> None:
        if self._sleeps:
            # Weights go to the machine's memory, so that a second try need not load them again.
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        for part in parts:
            if part in self._asleep:
                # vLLM wakes outside of PyTorch's allocator, which keeps what the update has freed.
                release_memory()
                self._llm.wake_up(tags=[part])
                self._asleep.remove(part)


def engine_arguments(
    model: Model, rollout: Rollout, name: str, *, seed: int = 0, device: torch.device, ranks: int
) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``.

    Parameters
    ----------
    model : Model
        Section ``model``.
    rollout : Rollout
        Section ``rollout``.
    name : str
        Folder, or model of the hub.
    seed : int
        Seed of the run.
    device : torch.device
        Device of the policy. On a GPU vLLM gives its memory to the policy between the rollouts; on
        the CPU there is nothing to give back.
    ranks : int
        Number of ranks, each with a vLLM of its own.
    """
    longest = rollout.max_prompt_length
    return {
        "model": name,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "gpu_memory_utilization": rollout.vllm_memory or VLLM_SHARE,
        "max_model_len": None if longest is None else longest + rollout.max_completion_length,
        "enable_sleep_mode": device.type == "cuda",
        # vLLM's own defaults, not those of the model's folder.
        "generation_config": "vllm",
        # Those of the distribution that was sampled: after temperature and bans.
        "logprobs_mode": "processed_logprobs",
        "seed": seed,
        # Each process of a launcher has an engine to itself, and keeps to its own GPU; without one
        # vLLM takes the first.
        "distributed_executor_backend": "external_launcher" if ranks > 1 or device.index else "uni",
    }


def adapter_arguments(rank: int) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM`` for one adapter of a rank, of those that vLLM has.

    Examples
    --------
    >>> adapter_arguments(24)
    {'enable_lora': True, 'max_loras': 1, 'max_lora_rank': 32}
    """
    room = next((largest for largest in _RANKS if rank <= largest), rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def memory_share(policy: Policy, options: Rollout, rows: int, total: int) -> float:
    """Return the share of a GPU's memory that vLLM needs.

    Parameters
    ----------
    policy : Policy
        Its model, of which vLLM has a whole copy.
    options : Rollout
        Lengths of prompts and responses.
    rows : int
        Responses of a rollout; the KV cache of more than 256 is not held at a time.
    total : int
        Bytes of the GPU.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters())
    longest = options.max_prompt_length or policy.max_prompt_length or 1024
    row = kv_cache(policy.model).bytes(1, longest + options.max_completion_length)
    return vllm_share(weights, row, rows, total)


def _as_sampled(response: Any) -> Sampled:
    # Each place holds the log-probability of its token.
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
def _launched_on(device: torch.device) -> Iterator[None]:
    """Name a GPU to vLLM as a launcher of one process would, unless there is a launcher."""
    if not device.index or Launch.read().size > 1:
        yield
        return
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(device.index)}
    # Port 0 is any that is free.
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with environment_with(place):
        yield


@contextmanager
def _start_errors(arguments: dict[str, Any]) -> Iterator[None]:
    """Turn an error of vLLM's start into one that names the options to change."""
    try:
        yield
    except Exception as error:
        reason = error_text(error, _LONGEST_REASON)
        raise RunError(
            f"vLLM cannot start with {arguments['model']} ({reason}); change rollout.vllm_memory "
            f"(it is {arguments['gpu_memory_utilization']}), set rollout.max_prompt_length to what "
            "the prompts need, or name rollout.engine: transformers"
        ) from error
