"""Stands in for vLLM: the calls that the trainer makes, answered by transformers.

It begins with weights of zero, so that whatever it answers comes from those handed over to it.
``STAND_IN=refuse`` in the environment makes it fail at the start.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from g2rpo_trainer.config import Model
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.prompts.batching import Prompts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.vllm_weights import weights_of

SamplingParams = SimpleNamespace
CONFIG = "adapter_config.json"


class LLM:
    def __init__(self, **options):
        self.stale = set()
        self.llm_engine = self.engine_core = self
        if os.environ.get("STAND_IN") == "refuse":
            raise ValueError("No available memory for the cache blocks")
        model = Model(sharding="none", dtype=options["dtype"])
        self.policy = load_policy(options["model"], device="cpu", model=model)
        self.rank = options["max_lora_rank"] if options.get("enable_lora") else 0
        self.adapters = []
        # Of a policy with adapters the base is never handed over.
        for weight in () if self.rank else self._weights().values():
            weight.zero_()

    def _weights(self):
        return dict(weights_of(self.policy))

    def collective_rpc(self, method, kwargs):
        assert method == "reload_weights"
        own = self._weights()
        # As a real one may, all of them are kept until the last has come.
        given = dict(kwargs["weights_iterator"])
        assert given.keys() == own.keys()
        for name, weight in given.items():
            own[name].copy_(weight)
        self.stale = {"prefix", "encoder"}

    def shutdown(self):
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def reset_prefix_cache(self):
        self.stale -= {"prefix"}

    def reset_mm_cache(self):
        pass

    def reset_encoder_cache(self):
        self.stale.remove("encoder")

    def take(self, request):
        """Read the adapter of a request, once for each number."""
        number = request.lora_int_id
        if number not in self.adapters:
            if self.adapters:
                self.policy.model.delete_adapter(f"policy-{self.adapters[-1]}")
            assert json.loads((Path(request.lora_path) / CONFIG).read_text())["r"] <= self.rank
            self.policy.model.load_adapter(request.lora_path, adapter_name=request.lora_name)
            self.adapters.append(number)
        assert number == self.adapters[-1]

    def generate(self, prompts, parameters, use_tqdm, lora_request=None):
        assert not self.stale
        if self.rank:
            self.take(lora_request)
        return [self._answer(*pair) for pair in zip(prompts, parameters, strict=True)]

    def _answer(self, prompt, parameters):
        tokens = prompt["prompt_token_ids"]
        images = prompt.get("multi_modal_data", {}).get("image")
        torch.manual_seed(parameters.seed)
        inputs = encoded(self.policy, tokens, images)
        found = sample(
            self.policy,
            inputs,
            num_generations=parameters.n,
            max_completion_length=parameters.max_tokens,
            temperature=parameters.temperature,
            stop=parameters.stop[0] if parameters.stop else None,
        )
        outputs = [
            SimpleNamespace(
                token_ids=tuple(found.tokens[row, :length].tolist()),
                logprobs=places(found, row, length),
                finish_reason="stop" if found.ended[row] else "length",
            )
            for row, length in enumerate(found.lengths.tolist())
        ]
        return SimpleNamespace(outputs=outputs, prompt_token_ids=inputs["input_ids"][0].tolist())


def encoded(policy, tokens, images):
    """Return the inputs of a prompt that has one placeholder for each image."""
    if not images:
        ids = torch.tensor([tokens])
        return Prompts({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    text = policy.tokenizer.decode(tokens)
    inputs = policy.processor(
        text=[text], images=[images], return_tensors="pt", add_special_tokens=False
    )
    rows = {name: [len(tensor)] for name, tensor in inputs.items() if len(tensor) > 1}
    return Prompts(dict(inputs), rows)


def places(found, row, length):
    pairs = zip(found.tokens[row, :length], found.logprobs[row, :length], strict=True)
    return [{int(token): SimpleNamespace(logprob=float(value))} for token, value in pairs]
