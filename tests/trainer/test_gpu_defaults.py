"""Defaults that follow the device: meta models and fake reports of memory stand for a GPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers

from g2rpo_trainer import evaluate, loop, sampling, train
from g2rpo_trainer.config import Model, Rollout, load_config
from g2rpo_trainer.device import deterministic_kernels, dtype_on
from g2rpo_trainer.estimate import estimate_memory
from g2rpo_trainer.model import loading
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model_shape import kv_cache, model_shape, wants_checkpointing
from g2rpo_trainer.row_cost import (
    BLOCK_COST,
    CPU_COST,
    CUDA_COST,
    keys_of_a_token,
    responses_per_row,
)
from g2rpo_trainer.sampling import fitting_rows, sample
from g2rpo_trainer.step_time import GPUS, step_seconds
from g2rpo_trainer.vllm_engine import memory_share

from .model_sizes import H100, run_of, shape_of, text_config

GIGABYTE = 2**30


@pytest.fixture(scope="module")
def large():
    """A language model of 1.7 billion parameters in bfloat16, without memory."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            text_config("1.7B"), dtype=torch.bfloat16
        )
    assert 1.6e9 < sum(weight.numel() for weight in model.parameters()) < 1.8e9
    return model


@pytest.mark.parametrize(
    ("device", "supported", "expected"),
    [("cpu", True, "float32"), ("cuda", True, "bfloat16"), ("cuda", False, "float32")],
)
def test_weights_are_bfloat16_on_gpus_that_compute_in_it(device, supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    device = torch.device(device)
    assert Model().dtype == "auto"
    assert dtype_on("auto", device) == expected
    assert dtype_on("float32", device) == "float32"


def test_a_model_is_loaded_in_the_dtype_of_its_device(folders, monkeypatch):
    folder = str(folders("llama"))
    assert load_policy(folder, device="cpu").model.dtype == torch.float32
    monkeypatch.setattr("g2rpo_trainer.device.dtype_on", lambda name, device: "bfloat16")
    assert load_policy(folder, device="cpu").model.dtype == torch.bfloat16


def test_layers_are_checkpointed_where_their_activations_do_not_fit(large):
    """4,096 tokens of 28 layers take 8 GB beside 27 GB of gradients, masters and moments."""
    found = {
        (tokens, free): wants_checkpointing(model_shape(large), tokens, free * GIGABYTE)
        for tokens in (1024, 4096)
        for free in (30, 40, 70, 130)
    }
    assert found == {
        (1024, 30): True,
        (1024, 40): False,
        (1024, 70): False,
        (1024, 130): False,
        (4096, 30): True,
        (4096, 40): True,
        (4096, 70): False,
        (4096, 130): False,
    }
    assert not wants_checkpointing(model_shape(large), 4096, 40 * GIGABYTE, ranks=4)
    assert not wants_checkpointing(model_shape(large), 10**6, None)


@pytest.mark.parametrize(("free", "expected"), [(None, False), (1, True), (GIGABYTE, False)])
def test_a_loaded_model_checkpoints_by_itself(folders, monkeypatch, free, expected):
    monkeypatch.setattr(loading, "free_memory", lambda device: free)
    switched = []
    monkeypatch.setattr(loading, "enable_gradient_checkpointing", switched.append)
    load_policy(str(folders("llama")), device="cpu", micro_batch_tokens=4096)
    assert bool(switched) == expected


def test_rows_of_a_rollout_are_bounded_by_free_memory(large, monkeypatch):
    assert kv_cache(large).bytes(1, 1) == 2 * 28 * 8 * 128 * 2
    policy = SimpleNamespace(
        model=large, device=torch.device("cuda"), buffer_size=lambda width: width
    )
    rows = {}
    for free in (10, 60):
        monkeypatch.setattr(sampling, "free_memory", lambda device, free=free: free * GIGABYTE)
        rows[free] = fitting_rows(policy, 2048)
    # 235 MB of keys and values and 5 MB of logits a row.
    assert rows == {10: 26, 60: 160}
    with deterministic_kernels():
        assert fitting_rows(policy, 2048) is None
    monkeypatch.setattr(sampling, "free_memory", lambda device: None)
    assert fitting_rows(policy, 2048) is None


def test_a_sliding_window_leaves_room_for_more_rows(large, monkeypatch):
    """Of 28 layers half keep 127 of 2,048 tokens: 125 MB of keys and values a row."""
    kinds = ["sliding_attention", "full_attention"] * 14
    config = copy.deepcopy(large.config)
    config.layer_types, config.sliding_window = kinds, 128
    windowed = SimpleNamespace(config=config, dtype=large.dtype, modules=large.modules)
    policy = SimpleNamespace(
        model=windowed, device=torch.device("cuda"), buffer_size=lambda width: width
    )
    token = 2 * 8 * 128 * 2
    assert kv_cache(windowed).bytes(1, 2048) == 14 * (2048 + 127) * token
    monkeypatch.setattr(sampling, "free_memory", lambda device: 10 * GIGABYTE)
    assert fitting_rows(policy, 2048) == 49


def test_what_does_not_fit_is_sampled_in_parts(random_policy, prompts, monkeypatch):
    torch.manual_seed(0)
    options = {"num_generations": 4, "max_completion_length": 6}
    whole = sample(random_policy, prompts, **options)
    calls, generate = [], random_policy.model.generate

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(random_policy.model, "generate", counted)
    monkeypatch.setattr(sampling, "fitting_rows", lambda policy, width: 9)
    torch.manual_seed(0)
    parts = sample(random_policy, prompts, **options)
    assert calls == [8, 8, 8]
    assert parts.texts == whole.texts


def test_the_share_of_vllm_follows_from_the_model(large):
    policy = SimpleNamespace(model=large, max_prompt_length=None)
    options = Rollout(max_prompt_length=1024, max_completion_length=1024)
    shares = [memory_share(policy, options, 192, total * GIGABYTE) for total in (24, 80, 141)]
    # 3.2 GiB of weights, 42 GiB of keys and values and 3 GiB to compute with, at most 0.6.
    assert shares == [0.6, 0.6, 0.342]
    assert memory_share(policy, options, 32, 80 * GIGABYTE) == pytest.approx(0.165, abs=0.01)


def test_an_evaluation_samples_as_the_run_does(tiny_run, monkeypatch):
    """By vLLM, if the run does."""
    asked = []

    class Sampler:
        def __call__(self, policy, prompts, records, options, share=None, *, with_values=True):
            asked.append((len(records), options.num_generations, options.temperature, with_values))
            return sampling.sample_with_policy(policy, prompts, records, options, share)

    opened = []

    def open_stand_in(config, policy, ranks):
        opened.append(config.model.name)
        return nullcontext(Sampler())

    monkeypatch.setattr(loop, "open_sampler", open_stand_in)
    monkeypatch.setattr("g2rpo_trainer.evaluation.open_sampler", open_stand_in)
    settings = ["data.tasks=[ocr]", "data.eval_generations=1", "data.eval_temperature=0"]
    config = tiny_run(*settings, "optimization.steps=1", "output.trackers=[]")
    summary = train(config)
    evaluations = [each for each in asked if not each[3]]
    assert evaluations == [(2, 1, 1e-6, False)] * 2
    # The responses of the step, with their log-probabilities.
    assert len(asked) == 3
    found = evaluate(config.model.name, config)
    assert opened == [config.model.name] * 2
    assert found["reward"]["ocr"] == summary["before"]["ocr"]


def test_presets_and_defaults_agree_on_a_gpu():
    """Presets that name a dtype name the default of a GPU."""
    for preset in ("text", "vlm", "vlm-lora"):
        assert load_config(preset).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("attention", "is_gpu", "expected"),
    [("auto", False, CPU_COST), ("auto", True, BLOCK_COST), ("sdpa", True, CUDA_COST)],
)
def test_packed_rows_are_counted_by_the_cost_on_the_device(attention, is_gpu, expected):
    overrides = {"model.attention": attention, "optimization.micro_batch_tokens": 100_000}
    shape, config = shape_of("1.7B"), run_of("1.7B", **overrides)
    found = estimate_memory(config, shape=shape, gpu_free=H100.free if is_gpu else None).work
    prompt, response, each = found.prompt, found.completion, config.rollout.num_generations
    packed = responses_per_row(prompt, response, each, shape.text.hidden, expected)
    assert found.row == prompt + packed * response
    assert found.keys == keys_of_a_token(prompt, response, packed, expected.block)
    assert (found.keys < found.row) == (expected is BLOCK_COST)


def test_a_row_has_no_more_tokens_than_a_pass():
    """As in the update, where a group that is too long is divided."""
    found = estimate_memory(run_of("1.7B"), shape=shape_of("1.7B"), gpu_free=H100.free).work
    assert found.tokens == 4096
    assert found.row == found.prompt + 3 * found.completion == 4096
    assert found.predicted == 3 * found.completion


def test_a_model_without_block_masks_is_counted_under_dense_ones():
    shape = shape_of("1.7B")
    assert shape.takes_blocks
    config, given = run_of("1.7B"), {"gpu_free": H100.free}
    dense = estimate_memory(config, shape=replace(shape, takes_blocks=False), **given)
    sdpa = run_of("1.7B", **{"model.attention": "sdpa"})
    assert dense.work == estimate_memory(sdpa, shape=shape, **given).work
    blocks = estimate_memory(config, shape=shape, **given)
    assert (
        step_seconds(blocks, GPUS["H100"])["update"] < step_seconds(dense, GPUS["H100"])["update"]
    )
