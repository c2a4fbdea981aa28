"""vLLM beside the policy: it samples the training responses on the GPU that trains.

vLLM computes in another precision and order than the policy, so its tokens are samples of a
slightly different distribution. Log-probabilities and exact entropies under the policy come from
one pass without gradient; the ratio of the two distributions weights the surrogates
(:mod:`.token_weights`).
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from g2rpo_trainer.config import Rollout, TrainConfig
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record

from .batch import Batch, batch_values
from .device import model_on
from .distributed import Ranks, Share
from .model.adapting import base_of, is_adapter
from .model.policy_model import Policy
from .model.reading import BUILTIN
from .prompts.batching import Inputs
from .sampling import Completions, Sampler, sample_with_policy
from .sharding import full_adapter
from .stopping import response_texts
from .vllm_engine import (
    Sampled,
    VLLMEngine,
    adapter_arguments,
    engine_arguments,
    memory_share,
)
from .vllm_requests import make_requests
from .vllm_weights import (
    require_handover,
    require_request,
    save_adapter,
    save_whole,
    sends_adapter,
    weights_of,
)


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
        rollout = config.rollout
        if rollout.vllm_memory is None and policy.device.type == "cuda":
            total = torch.cuda.mem_get_info(policy.device)[1]
            rows = -(-rollout.prompts_per_step * rollout.num_generations // ranks.size)
            share = memory_share(policy, rollout, rows, total)
            rollout = rollout.model_copy(update={"vllm_memory": share})
        arguments = engine_arguments(
            model_on(config.model, policy.device),
            rollout,
            folder,
            seed=config.seed,
            device=policy.device,
            ranks=ranks.size,
        )
        if sends_adapter(config.rollout, policy):
            require_request(policy, config.model)
            arguments |= adapter_arguments(policy.model.peft_config["default"].r)
        # Not inside of `raise_on_all_ranks`: engines wait for each other when they start.
        engine = VLLMEngine(arguments, policy.device)
    try:
        with TemporaryDirectory(prefix="g2rpo-adapter-") as folder:
            yield VLLMSampler(engine, config.optimization.micro_batch_tokens, ranks, Path(folder))
    finally:
        engine.close()


class VLLMSampler:
    """Samples with vLLM, and evaluates its tokens with the policy.

    Parameters
    ----------
    engine : VLLMEngine
        Given the policy's weights whenever they have changed.
    micro_batch_tokens : int
        Tokens of a pass of the policy over responses.
    ranks : Ranks
        Ranks that train together.
    folder : Path, optional
        Folder for adapters, where ``rollout.vllm_adapter`` sends them.
    """

    def __init__(
        self,
        engine: VLLMEngine,
        micro_batch_tokens: int,
        ranks: Ranks = Ranks(),
        folder: Path | None = None,
    ) -> None:
        self._engine, self._ranks, self._folder = engine, ranks, folder
        self._budget = micro_batch_tokens
        self._loaded: int | None = None
        self._adapters = 0

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
        self._hand_over_weights(policy, options)
        seeds = torch.randint(2**31, (len(records) if share is None else share.total,))
        if share is not None:
            seeds = seeds[list(share.padded)]
        with self._ranks.raise_on_all_ranks():
            requests = make_requests(policy, prompts, records, options, seeds.tolist())
            answers = self._engine.generate(requests)
        temperature = options.temperature if with_values else None
        completions = self._evaluated(policy, prompts, answers, temperature)
        if share is None or share.own == share.padded:
            return completions
        own = len(share.own) * options.num_generations
        return completions.rows(torch.arange(own, device=policy.device))

    def _hand_over_weights(self, policy: Policy, options: Rollout) -> None:
        # PyTorch counts up the version of a weight with every update in place.
        version = sum(weight._version for weight in policy.model.parameters())
        if not self._ranks.any(version != self._loaded):
            return
        self._loaded = version
        if self._folder and sends_adapter(options, policy):
            self._send_adapter(policy, self._folder)
            return
        weights = weights_of(policy)
        with self._ranks.raise_on_all_ranks():
            try:
                self._engine.load(weights)
            finally:
                # The other ranks of a sharded policy wait for this one's part of every weight.
                deque(weights, maxlen=0)

    def _send_adapter(self, policy: Policy, folder: Path) -> None:
        weights = full_adapter(policy.model)
        self._adapters += 1
        path = folder / str(self._adapters)
        with self._ranks.raise_on_all_ranks():
            # vLLM reads it at the next rollout, and none before it again.
            shutil.rmtree(folder / str(self._adapters - 1), ignore_errors=True)
            save_adapter(policy, path, weights)
            self._engine.load_adapter(path, self._adapters)

    def _evaluated(
        self,
        policy: Policy,
        prompts: Inputs,
        answers: list[list[Sampled]],
        temperature: float | None,
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
        if temperature is not None:
            columns = (tokens, mask, sampled, nothing, nothing[:, 0], None, groups)
            batch = Batch(prompts, groups, *columns, task_names=())
            logprobs, entropies = batch_values(
                policy, batch, self._budget, temperature, self._ranks
            )
        return Completions(
            tokens=tokens,
            mask=mask,
            logprobs=logprobs,
            entropies=entropies,
            texts=response_texts(policy, [each.tokens for each in responses]),
            ended=torch.tensor([each.ended for each in responses], device=policy.device),
            sampler_logprobs=sampled,
        )


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
