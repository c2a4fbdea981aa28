"""vLLM inside the training process: it shares the GPU, and sleeps while the policy learns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from g2rpo.run.description import RunDescription
from g2rpo.run.errors import RunError
from g2rpo.run.sections import Rollout
from g2rpo.tasks import Record

from ..inputs.chat import chat_text
from ..inputs.prompts import Inputs
from ..model.policy_model import Policy
from .engine import Sampled


class VLLMEngine:
    """An engine of its own for the responses, on the GPU of the policy.

    Parameters
    ----------
    description : RunDescription
        Its model, rollout and seed.

    Raises
    ------
    RunError
        If vLLM is not installed, or the model is one that it cannot be given by name.
    """

    def __init__(self, description: RunDescription) -> None:
        # In this process, so that weights are handed over without a copy through a pipe.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ImportError as error:
            raise RunError(
                "rollout.engine is 'vllm', which is not installed; pip install vllm, or name "
                "'transformers'"
            ) from error
        model = description.model
        if model.name == "builtin" or model.gguf_file:
            raise RunError(
                "rollout.engine is 'vllm', which takes a folder or a model of the hub; for "
                f"model.name {model.name!r} name 'transformers'"
            )
        self._params: Any = vllm.SamplingParams
        self._llm: Any = vllm.LLM(
            model=model.name,
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            gpu_memory_utilization=description.rollout.vllm_memory,
            enable_sleep_mode=True,
            # Those of the distribution that was sampled: after temperature and bans.
            logprobs_mode="processed_logprobs",
            seed=description.seed,
        )
        self._asleep: set[str] = set()
        self._sleep()

    def load(self, policy: Policy) -> None:
        """Copy the policy's weights over the engine's, and forget what was cached of the old."""
        weights = [(name, weight.detach()) for name, weight in policy.model.named_parameters()]

        def copy(model: Any) -> None:
            model.load_weights(iter(weights))

        self._wake("weights")
        self._llm.apply_model(copy)
        self._llm.reset_prefix_cache()

    def generate(
        self, policy: Policy, prompts: Inputs, records: Sequence[Record], options: Rollout
    ) -> list[list[Sampled]]:
        """Sample, and put the engine to sleep again."""
        self._wake("weights", "kv_cache")
        seeds = torch.randint(2**31, (len(records),)).tolist()
        parameters = [
            self._params(**sampling_options(policy, record, options, seed))
            for record, seed in zip(records, seeds, strict=True)
        ]
        outputs = self._llm.generate(requests(policy, prompts, records), parameters, use_tqdm=False)
        self._sleep()
        return [[as_sampled(response) for response in output.outputs] for output in outputs]

    def _sleep(self) -> None:
        # Weights go to the machine's memory, so that a second try need not load them again.
        self._llm.sleep(level=1)
        self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        for part in parts:
            if part in self._asleep:
                self._llm.wake_up(tags=[part])
                self._asleep.remove(part)


def sampling_options(policy: Policy, record: Record, options: Rollout, seed: int) -> dict[str, Any]:
    """Return vLLM's sampling parameters of one prompt."""
    return {
        "n": options.num_generations,
        "seed": seed,
        "temperature": options.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_tokens": options.limit_of(record["task_type"]),
        # The sampled token's own.
        "logprobs": 0,
        "stop_token_ids": list(policy.eos_ids),
        "stop": None if options.stop is None else [options.stop],
        "include_stop_str_in_output": True,
        # The lowest there is: as good as never.
        "logit_bias": {int(token): -100.0 for token in policy.banned_ids},
    }


def requests(policy: Policy, prompts: Inputs, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the prompts as vLLM takes them: tokens, or text with the images that belong to it."""
    found: list[dict[str, Any]] = []
    rows = zip(prompts["input_ids"], prompts["attention_mask"].bool(), records, strict=True)
    for tokens, mask, record in rows:
        images = list(record["images"])
        if images:
            data = {"image": images if len(images) > 1 else images[0]}
            found.append({"prompt": chat_text(policy, record), "multi_modal_data": data})
        else:
            found.append({"prompt_token_ids": tokens[mask].tolist()})
    return found


def as_sampled(response: Any) -> Sampled:
    """Return one of vLLM's outputs; each place holds the log-probability of its token."""
    tokens = list(response.token_ids)
    logprobs = [
        place[token].logprob for token, place in zip(tokens, response.logprobs, strict=True)
    ]
    return Sampled(tokens, logprobs, response.finish_reason == "stop")
