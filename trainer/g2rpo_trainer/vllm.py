"""vLLM beside the policy: it samples the training responses on the GPU that trains.

vLLM computes in another precision and order than the policy, so its tokens are samples of a
slightly different distribution. Log-probabilities and exact entropies under the policy come from
one pass without gradient; the ratio of the two distributions weights the surrogates
(:mod:`.token_weights`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from g2rpo._shown import error_text
from g2rpo_trainer.config import Rollout, TrainConfig
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record

from .batch import Batch, batch_values
from .device import dtype_on, release_memory
from .distributed import Ranks, Share
from .estimate import VLLM_SHARE, vllm_share
from .model.adapting import base_of, is_adapter
from .model.loading import BUILTIN
from .model.policy_model import Policy
from .model_shape import kv_cache
from .prompts.batching import Inputs
from .prompts.chat import chat_of
from .sampling import Completions, Sampler, sample_with_policy
from .stopping import response_texts, stop_texts
from .vllm_weights import require_handover, save_whole, weights_of

# Characters of vLLM's own error text; some of its errors list all layers of a model.
_LONGEST_REASON = 400


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


@contextmanager
def open_sampler(
    config: TrainConfig,
    policy: Policy,
    ranks: Ranks = Ranks(),
) -> Iterator[Sampler]:
    """Yield the sampler of the training responses, and end vLLM when the context is left.

    Parameters
    ----------
    config : TrainConfig
        Its model, data and rollout sections.
    policy : Policy
        Policy to sample.
    ranks : Ranks
        Ranks that train together.

    Raises
    ------
    RunError
        If vLLM cannot start or take over the policy's weights.
    """
    if config.rollout.engine == "transformers":
        yield sample_with_policy
        return
    if config.model.name == BUILTIN:
        raise RunError(
            "rollout.engine is 'vllm', which knows the layers of the built-in policy by other "
            "names; name 'transformers', or another model"
        )
    require_handover(policy)
    with _folder_for_vllm(config, policy) as folder:
        # Not inside of `raise_on_all_ranks`: engines wait for each other when they start.
        arguments = engine_arguments(
            config,
            folder,
            # There is nothing to give back on the CPU.
            sleeps=policy.device.type == "cuda",
            ranks=ranks.size,
        )
        arguments["dtype"] = dtype_on(config.model.dtype, policy.device)
        if config.rollout.vllm_memory is None and policy.device.type == "cuda":
            total = torch.cuda.mem_get_info(policy.device)[1]
            responses = config.rollout.prompts_per_step * config.rollout.num_generations
            rows = -(-responses // ranks.size)
            arguments["gpu_memory_utilization"] = memory_share(policy, config.rollout, rows, total)
        engine = VLLMEngine(arguments)
    try:
        yield VLLMSampler(engine, config, ranks)
    finally:
        engine.close()


class VLLMSampler:
    """Samples with vLLM, and evaluates its tokens with the policy.

    Parameters
    ----------
    engine : VLLMEngine
        Given the policy's weights whenever they have changed.
    config : TrainConfig
        Its rollout and optimization sections.
    ranks : Ranks
        Ranks that train together.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        config: TrainConfig,
        ranks: Ranks = Ranks(),
    ) -> None:
        self._engine, self._config, self._ranks = engine, config, ranks
        self._loaded: int | None = None

    def __call__(
        self,
        policy: Policy,
        prompts: Inputs,
        records: Sequence[Record],
        options: Rollout,
        share: Share | None = None,
        *,
        with_values: bool = True,
    ) -> Completions:
        """Return responses with the log-probabilities of both the policy and vLLM."""
        policy.model.zero_grad(set_to_none=True)
        self._hand_over_weights(policy)
        seeds = torch.randint(2**31, (len(records) if share is None else share.total,))
        if share is not None:
            seeds = seeds[list(share.padded)]
        with self._ranks.raise_on_all_ranks():
            requests = make_requests(policy, prompts, records, options, seeds.tolist())
            answers = self._engine.generate(requests)
        completions = self._evaluated(policy, prompts, answers, with_values)
        if share is None or share.own == share.padded:
            return completions
        own = len(share.own) * options.num_generations
        return completions.rows(torch.arange(own, device=policy.device))

    def _hand_over_weights(self, policy: Policy) -> None:
        # PyTorch counts up the version of a weight with every update in place.
        version = sum(weight._version for weight in policy.model.parameters())
        if not self._ranks.any(version != self._loaded):
            return
        weights = weights_of(policy)
        with self._ranks.raise_on_all_ranks():
            try:
                self._engine.load(weights)
            finally:
                # The other ranks of a sharded policy wait for this one's part of every weight.
                deque(weights, maxlen=0)
        self._loaded = version

    def _evaluated(
        self,
        policy: Policy,
        prompts: Inputs,
        answers: list[list[Sampled]],
        with_values: bool,
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
        logprobs = entropies = nothing
        if with_values:
            columns = (tokens, mask, sampled, nothing, nothing[:, 0], None, groups)
            batch = Batch(prompts, groups, *columns, task_names=())
            budget = self._config.optimization.micro_batch_tokens
            temperature = self._config.rollout.temperature
            logprobs, entropies = batch_values(policy, batch, budget, temperature, self._ranks)
        return Completions(
            tokens=tokens,
            mask=mask,
            logprobs=logprobs,
            entropies=entropies,
            texts=response_texts(policy, [each.tokens for each in responses]),
            ended=torch.tensor([each.ended for each in responses], device=policy.device),
            sampler_logprobs=sampled,
        )


class VLLMEngine:
    """vLLM in this process.

    Parameters
    ----------
    arguments : dict
        Arguments of ``vllm.LLM``, as :func:`engine_arguments` returns them. With
        ``enable_sleep_mode`` it gives its memory to the policy between the rollouts.

    Raises
    ------
    RunError
        If vLLM is not installed, or cannot start with this model or in this memory.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
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
        with _random_numbers_kept(), _start_errors(arguments):
            self._llm: Any = vllm.LLM(**arguments)
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

    def generate(self, requests: Sequence[Request]) -> list[list[Sampled]]:
        """Sample the responses to each prompt, and put the engine to sleep again."""
        if not requests:
            return []
        self._wake("weights", "kv_cache")
        prompts = [request.prompt for request in requests]
        parameters = [self._params(**request.sampling) for request in requests]
        with _random_numbers_kept():
            outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
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
    config: TrainConfig, model: str, *, sleeps: bool, ranks: int
) -> dict[str, Any]:
    """Return the arguments of ``vllm.LLM``.

    Parameters
    ----------
    config : TrainConfig
        Its model and rollout sections, and its seed.
    model : str
        Folder, or model of the hub.
    sleeps : bool
        Whether it gives its memory to the policy between the rollouts.
    ranks : int
        Number of ranks, each with a vLLM of its own.
    """
    rollout, longest = config.rollout, config.rollout.max_prompt_length
    return {
        "model": model,
        "dtype": config.model.dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "gpu_memory_utilization": rollout.vllm_memory or VLLM_SHARE,
        "max_model_len": None if longest is None else longest + rollout.max_completion_length,
        "enable_sleep_mode": sleeps,
        # vLLM's own defaults, not those of the model's folder.
        "generation_config": "vllm",
        # Those of the distribution that was sampled: after temperature and bans.
        "logprobs_mode": "processed_logprobs",
        "seed": config.seed,
        # Each process of a launcher has an engine to itself, and keeps to its own GPU.
        "distributed_executor_backend": "external_launcher" if ranks > 1 else "uni",
    }


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


def _as_sampled(response: Any) -> Sampled:
    # Each place holds the log-probability of its token.
    tokens = list(response.token_ids)
    logprobs = [
        place[token].logprob for token, place in zip(tokens, response.logprobs, strict=True)
    ]
    return Sampled(tokens, logprobs, response.finish_reason == "stop")


def _with_one_placeholder_each(policy: Policy, record: Record) -> list[int]:
    # As a processor begins: what it adds to a text is what the tokenizer adds.
    text, begins = chat_of(policy, record).text, policy.tokenizer.bos_token
    has_begun = bool(begins) and text.startswith(begins)
    tokens: list[int] = policy.tokenizer(text, add_special_tokens=not has_begun)["input_ids"]
    return tokens


@contextmanager
def _folder_for_vllm(config: TrainConfig, policy: Policy) -> Iterator[str]:
    """Yield the folder or hub id from which vLLM reads all but the current weights."""
    model = config.model
    if model.gguf_file:
        with TemporaryDirectory(prefix="g2rpo-vllm-") as folder:
            save_whole(policy, Path(folder))
            yield folder
        return
    named = Path(model.name)
    yield base_of(named) if is_adapter(named) else model.name


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    # vLLM sets the seed of the whole process when it starts.
    with torch.random.fork_rng(devices=[]):
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
