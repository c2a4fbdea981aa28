"""Estimated bytes and operations against counted ones, and what follows for known models."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from g2rpo_trainer import estimate as estimates
from g2rpo_trainer.batch import Batch
from g2rpo_trainer.config import Lora, Model, load_config
from g2rpo_trainer.device_fit import DeviceMemory, device_memory, fit_of, require_memory
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.estimate import (
    activation_bytes,
    estimate_memory,
    head_bytes,
)
from g2rpo_trainer.model import adapting
from g2rpo_trainer.model.adapting import peft_fault, vision_tower
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.policy_model import Shortcuts, make_policy
from g2rpo_trainer.model.reading import meta_model
from g2rpo_trainer.model_shape import model_shape
from g2rpo_trainer.optimizer import MasterAdamW, make_optimizer
from g2rpo_trainer.policy.build import build_tokenizer
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.step_time import GPUS, step_seconds, update_operations

from .adapters import OWN, needs_lora, save_own_adapter
from .live_bytes import LiveBytes
from .model_sizes import H100, run_of, shape_of, text_config
from .parts import learner_of
from .shared_prompt_models import COVERED, IMAGE_MODELS, make

GIB = 2**30
PROMPT, RESPONSE, EACH, PROMPTS = 48, 32, 4, 3


def nbytes(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


# Weights and optimiser.

MODELS = {
    "plain": {},
    "bfloat16": {"dtype": "bfloat16"},
    "adapters": {"dtype": "bfloat16", "lora": Lora(rank=2)},
    "frozen vision": {"freeze_vision": True},
}


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3"]
)
def test_weights_gradients_and_optimizer_are_those_of_the_real_model(family, options, folders):
    if options == "adapters" and peft_fault():
        pytest.skip(str(peft_fault()))
    if "vision" in options and family in ("llama", "qwen3"):
        pytest.skip("a text model has no vision tower")
    model = Model(name=str(folders(family)), **MODELS[options])
    config = load_config(overrides={"model": model.model_dump()})
    found = estimate_memory(config)
    policy = load_policy(model.name, device="cpu", model=model)
    optimizer = make_optimizer(policy, config.optimization)
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    sum(weight.float().sum() for weight in trained).backward()
    optimizer.step()
    parts = found.phases["loss"]
    assert parts["weights"] == nbytes(policy.model.parameters())
    assert parts["gradients"] == nbytes(weight.grad for weight in trained)
    masters = [m for w, m in zip(optimizer.weights, optimizer.masters, strict=True) if m is not w]
    moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    assert parts["optimiser"] == nbytes(masters) + nbytes(moments)
    assert found.shape.trained == sum(weight.numel() for weight in trained)
    assert found.shape == model_shape(policy.model)


@needs_lora
@pytest.mark.parametrize("kind", ["query", "output", "rank"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_adapter_is_counted_without_its_weights(kind, dtype, folders, tmp_path):
    save_own_adapter(folders("llama"), tmp_path / "adapter", **OWN[kind])
    model = Model(name=str(tmp_path / "adapter"), dtype=dtype)
    policy = load_policy(model.name, device="cpu", model=model)
    assert model_shape(meta_model(model)) == model_shape(policy.model)


def test_tied_weights_count_once():
    config = transformers.LlamaConfig(**TEXT, tie_word_embeddings=True)
    with torch.device("meta"):
        tied = transformers.AutoModelForCausalLM.from_config(config)
    embedding = TEXT["vocab_size"] * TEXT["hidden_size"]
    assert model_shape(tied).root_bytes == 4 * (embedding + TEXT["hidden_size"])


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_a_step_of_adamw_is_within_the_estimate(dtype, count):
    weights = [torch.nn.Parameter(torch.ones(8 * 4096 // count, dtype=dtype)) for _ in range(count)]
    optimizer = MasterAdamW(weights)
    for _ in range(2):
        for weight in weights:
            weight.sum().backward()
        with LiveBytes() as counted:
            optimizer.step()
    # A step on a CPU; `test_optimizer.py` counts one that goes through a bucket at once.
    estimated = estimates.BUCKET_WEIGHT * 8 * 4096
    assert counted.peak <= estimated + 64 * 1024
    if count == 1:
        assert counted.peak >= estimated


# KV cache.

TEXT = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention"] * 3
CONFIGS = {
    "llama": transformers.LlamaConfig(**TEXT),
    "qwen2": transformers.Qwen2Config(**TEXT),
    "qwen3": transformers.Qwen3Config(**TEXT, head_dim=16),
    "gpt2": transformers.GPT2Config(
        vocab_size=4096, n_embd=64, n_layer=6, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "mistral": transformers.MistralConfig(**TEXT, sliding_window=16),
    "gemma3_text": transformers.Gemma3TextConfig(
        **TEXT, head_dim=16, sliding_window=16, layer_types=MIXED
    ),
}


def build(name, *, dtype=torch.float32, attention="sdpa", vocabulary=4096):
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size = vocabulary
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM
    return auto.from_config(config, attn_implementation=attention, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [8, 40])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_kv_cache_is_as_large_as_a_real_one(name, tokens, dtype):
    model = build(name, dtype=dtype)
    ids = torch.randint(10, 4000, (3, tokens))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    real = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert model_shape(model).cache.bytes(3, tokens) == real


@pytest.mark.parametrize("name", [*COVERED, "paligemma", "olmo2"])
def test_every_tested_architecture_has_the_shape_of_its_cache(name):
    model = make(name).model
    ids = torch.randint(10, 200, (2, 12))
    with torch.no_grad():
        cache = model(ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    real = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    shape = model_shape(model)
    assert shape.cache.bytes(2, 12) == real
    assert (shape.vision is not None) == (name in IMAGE_MODELS or name == "paligemma")
    assert shape.text.gated == (name != "gpt2")


def test_layers_without_keys_and_values_take_no_cache():
    config = transformers.Lfm2Config(
        **{**TEXT, "num_hidden_layers": 2}, layer_types=["conv", "full_attention"]
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert model_shape(model).cache.bytes(1, 10) == 2 * 10 * 2 * 16 * 4


# Activations.


def one_pass(model, *, packed=True, response=RESPONSE):
    """Return a pass of the update over twelve responses: policy, batch, configuration."""
    shortcuts = Shortcuts(packed_rows=packed, without_logits=model.config.vocab_size >= 2048)
    policy = make_policy(model, SimpleNamespace(tokenizer=build_tokenizer()))
    policy = replace(policy, shortcuts=shortcuts)
    count = PROMPTS * EACH
    torch.manual_seed(0)
    tokens = torch.randint(10, 200, (count, response))
    ids = torch.randint(10, 200, (PROMPTS, PROMPT))
    nothing = torch.zeros(count, response)
    batch = Batch(
        prompts={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        groups=torch.arange(PROMPTS).repeat_interleave(EACH),
        tokens=tokens,
        mask=torch.ones_like(tokens, dtype=torch.bool),
        logprobs=nothing - 5,
        entropies=nothing + 1,
        advantages=torch.randn(count),
        length_advantages=None,
        tasks=torch.zeros(count, dtype=torch.int64),
        task_names=["ocr"],
    )
    settings = {
        "data.tasks": ["ocr"],
        "length.mode": "off",
        "rollout.max_prompt_length": PROMPT,
        "rollout.max_completion_length": response,
        "rollout.prompts_per_step": PROMPTS,
        "rollout.num_generations": EACH,
        "rollout.shared_prompts": "auto" if packed else "off",
        "optimization.micro_batch_tokens": 100_000,
    }
    return policy, batch, load_config(overrides=settings)


def counted_pass(policy, batch, config):
    """Return the most bytes that were alive in a forward and backward pass, beside gradients."""
    learner = learner_of(policy, config)
    totals = learner.totals(batch)
    for weight in policy.model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    with LiveBytes() as counted:
        terms, _ = learner.loss(batch, totals)
        terms.total.backward()
    return counted.peak


# Largest ratio of estimated to counted bytes of a pass, either way, as docs/scaling.md states it.
FACTOR = 1.35
# The activation function of GPT-2 is made of many operations.
FACTORS = {"gpt2": 1.45}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "case"),
    [
        *product(CONFIGS, ["all", "both"]),
        *product(["llama"], ["checkpointing", "adapters", "eager", "unpacked"]),
    ],
)
def test_activations_are_within_a_factor_of_the_counted_peak(name, case, dtype):
    model = build(name, dtype=dtype, attention="eager" if case == "eager" else "sdpa")
    if case in ("adapters", "both"):
        if peft_fault():
            pytest.skip(str(peft_fault()))
        adapting.attach_adapter(model, Model(lora=Lora(rank=4)), None)
    checkpointing = case in ("checkpointing", "both")
    if checkpointing:
        adapting.enable_gradient_checkpointing(model)
    # Few response tokens show a layer at work, many the output layer.
    for response in (4, RESPONSE):
        given = one_pass(model, packed=case != "unpacked", response=response)
        shape = model_shape(model)
        work = estimates.workload(given[2], shape)
        kept, working = activation_bytes(shape, work, checkpointing)
        estimated = kept + max(working, head_bytes(shape, work))
        factor = FACTORS.get(name, FACTOR)
        assert 1 / factor < estimated / counted_pass(*given) < factor, response


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_logits_are_within_the_factor_too(dtype):
    model = build("llama", dtype=dtype, vocabulary=1500)
    given = one_pass(model)
    shape = model_shape(model)
    work = estimates.workload(given[2], shape)
    kept, working = activation_bytes(shape, work, False)
    estimated = kept + max(working, head_bytes(shape, work))
    assert 1 / FACTOR < estimated / counted_pass(*given) < FACTOR


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("vocabulary", [400, 4096])
def test_a_rollout_takes_what_is_counted_for_it_or_a_little_less(vocabulary, is_shared, dtype):
    policy, batch, config = one_pass(build("llama", dtype=dtype, vocabulary=vocabulary))
    policy = replace(policy, shortcuts=Shortcuts(shared_rollouts=is_shared), eos_ids=())
    policy = replace(policy, banned_ids=torch.tensor([1]))
    sizes = {"rollout.num_generations": 16, "rollout.max_completion_length": 64}
    shares = {"rollout.shared_prompts": "auto" if is_shared else "off"}
    config = load_config(
        overrides={**config.model_dump(), **sizes, **shares, "data.eval_batch_size": 1}
    )
    with LiveBytes() as counted:
        sample(policy, batch.prompts, num_generations=16, max_completion_length=64)
    parts = estimate_memory(config, shape=model_shape(policy.model)).phases["rollout"]
    estimated = sum(parts.values()) - parts["weights"] - parts["optimiser"]
    assert 0.95 < estimated / counted.peak < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_a_vision_tower_takes_about_what_its_layers_are_counted_for(name, dtype):
    """More is counted than there is, where norms are layer norms, which keep less."""
    config = copy.deepcopy(IMAGE_MODELS[name])
    for layers in ("depth", "num_hidden_layers"):
        if hasattr(config.vision_config, layers):
            setattr(config.vision_config, layers, 6)
    config.vision_config.hidden_size, config.vision_config.intermediate_size = 64, 256
    auto = transformers.AutoModelForImageTextToText
    model = auto.from_config(config, dtype=dtype).eval()
    tower, shape = vision_tower(model), model_shape(model)
    with LiveBytes() as counted:
        if name.startswith("qwen"):
            kept = tower(torch.randn(256, 96, dtype=dtype), grid_thw=torch.tensor([[1, 16, 16]]))
        else:
            kept = tower(pixel_values=torch.randn(16, 3, 32, 32, dtype=dtype))
        alive = counted.alive
    assert kept is not None  # and with it all that its backward pass needs
    estimated = 256 * shape.vision.layers * shape.vision.layer_bytes(shape.item)
    assert 0.85 < estimated / alive < 1.65


# Time.


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_operations_of_an_update_are_those_that_pytorch_counts(name, checkpointing):
    model = build(name, attention="eager", vocabulary=1500)
    if checkpointing:
        adapting.enable_gradient_checkpointing(model)
    policy, batch, config = one_pass(model)
    config = load_config(
        overrides={**config.model_dump(), "model.gradient_checkpointing": checkpointing}
    )
    found = estimate_memory(config, shape=model_shape(model))
    learner = learner_of(policy, config)
    totals = learner.totals(batch)
    with FlopCounterMode(display=False) as counter:
        terms, _ = learner.loss(batch, totals)
        terms.total.backward()
    # The last tokens of responses are left out, and what is computed again ends before the last
    # product of a layer.
    tolerance = 0.1 if checkpointing else 0.05
    counted = counter.get_total_flops()
    assert update_operations(found) == pytest.approx(counted, rel=tolerance)


@pytest.mark.skipif(peft_fault() is not None, reason=str(peft_fault()))
def test_adapters_take_a_pass_less():
    model = build("llama", attention="eager", vocabulary=1500)
    _, _, config = one_pass(model)
    whole = estimate_memory(config, shape=model_shape(model))
    adapting.attach_adapter(model, Model(lora=Lora(rank=1)), None)
    adapted = estimate_memory(config, shape=model_shape(model))
    assert update_operations(adapted) < 0.75 * update_operations(whole)


def test_seconds_fall_with_a_faster_gpu_and_grow_with_the_responses():
    shape, config = shape_of("4B"), run_of("4B")
    longer = load_config(overrides={**config.model_dump(), "rollout.max_completion_length": 4096})

    def seconds(config, gpu):
        return step_seconds(estimate_memory(config, shape=shape), GPUS[gpu])

    slow, fast = seconds(config, "A100"), seconds(config, "B200")
    for part in ("prefill", "decode", "update"):
        assert 0 < slow[part].low < slow[part].high
        assert fast[part].low <= slow[part].low
        assert fast[part].high <= slow[part].high
    assert seconds(longer, "A100")["decode"].low > 3 * slow["decode"].low


def test_decoding_reads_all_weights_for_each_token():
    """1,024 tokens of a model of 4 billion weights in 16 bits, at 80 % of 2 TB/s, take 5.1 s."""
    shape = shape_of("4B")
    config = load_config(
        overrides={
            **run_of("4B").model_dump(),
            "rollout.engine": "vllm",
            "rollout.prompts_per_step": 1,
            "rollout.num_generations": 2,
        }
    )
    found = step_seconds(estimate_memory(config, shape=shape), GPUS["A100"])
    assert found["decode"].low == pytest.approx(2 * shape.parameters * 1024 / 1.6e12, rel=0.1)


# Known models.


@pytest.mark.parametrize(("size", "fits"), [("2.5B", True), ("4B", True), ("8B", False)])
def test_full_training_on_one_gpu_of_80_gb(size, fits):
    found = estimate_memory(run_of(size), shape=shape_of(size), gpu_free=H100.free)
    assert (found.peak <= 0.9 * H100.free) == fits
    at_least = 18 * found.shape.parameters
    assert at_least <= sum(found.phases["step"].values()) <= 1.01 * at_least


@needs_lora
@pytest.mark.parametrize("size", ["8B", "14B"])
def test_adapters_fit_one_gpu_of_80_gb(size):
    config = run_of(size, **{"model.lora.rank": 16})
    found = estimate_memory(config, shape=shape_of(size, rank=16))
    assert found.peak <= 0.9 * H100.free
    assert found.phases["loss"]["weights"] > 2 * found.shape.parameters - 1


def test_eight_gpus_that_divide_a_model_of_8b():
    shape, config = shape_of("8B"), run_of("8B", **{"model.sharding": "fsdp"})
    one, eight = (
        estimate_memory(config, shape=shape, ranks=ranks, is_sharded=ranks > 1) for ranks in (1, 8)
    )
    assert one.state > H100.free > 0.9 * H100.free > eight.peak
    assert eight.state == pytest.approx(one.state / 8)
    # Embedding, output layer and two layers are whole while they compute.
    assert eight.phases["loss"]["gathered weights"] > shape.root_bytes
    whole = estimate_memory(config, shape=shape, ranks=8)
    assert whole.state == one.state
    assert whole.phases["rollout"]["KV cache"] == one.phases["rollout"]["KV cache"]


def test_a_reference_policy_is_as_large_as_the_weights():
    shape = shape_of("1.7B")
    held = estimate_memory(run_of("1.7B", **{"optimization.beta": 0.1}), shape=shape)
    assert held.phases["rollout"]["reference"] == shape.weight_bytes
    adapted = {"optimization.beta": 0.1, "model.lora.rank": 4}
    found = estimate_memory(run_of("1.7B", **adapted), shape=shape)
    assert "reference" not in found.phases["rollout"]


def test_vllm_takes_its_share_of_the_device_while_it_samples():
    config = run_of("1.7B", **{"rollout.engine": "vllm", "rollout.vllm_memory": 0.5})
    found = estimate_memory(config, shape=shape_of("1.7B"), device_total=H100.total)
    assert found.phases["rollout"]["vLLM"] == H100.total // 2
    assert "vLLM" not in found.phases["loss"]


def test_rows_of_a_rollout_are_those_of_training_or_of_the_evaluation():
    shape = shape_of("1.7B")

    def rows(**overrides):
        return estimates.workload(run_of("1.7B", **overrides), shape).rows

    assert rows(**{"rollout.batch_size": None}) == 64 * 8  # items of an evaluation
    assert rows(**{"rollout.batch_size": None, "data.eval_batch_size": 1}) == 24 * 8
    assert rows(**{"rollout.batch_size": 20}) == 20
    assert estimates.workload(run_of("1.7B"), shape, ranks=8).sampled == 3 * 8


def test_a_prompt_is_no_longer_than_the_model_allows():
    config = load_config()
    shape = replace(shape_of("1.7B"), context=100)
    assert estimates.workload(config, shape).prompt == 100 - 48
    longer = load_config(settings=["rollout.max_prompt_length=30"])
    assert estimates.workload(longer, shape).prompt == 30
    assert estimates.workload(config, shape_of("1.7B")).prompt == estimates.ASSUMED_PROMPT


def test_of_experts_only_the_chosen_ones_compute():
    config = transformers.Qwen3MoeConfig(
        **{**TEXT, "num_hidden_layers": 2},
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = model_shape(model)
    layers = [w.numel() for n, w in model.named_parameters() if ".layers." in n]
    experts = [w.numel() for n, w in model.named_parameters() if ".experts." in n]
    assert sum(experts) == 2 * 8 * 3 * 64 * 32
    assert shape.text.weights == sum(layers) - sum(experts) * 3 // 4
    assert shape.text.inner == 2 * 32


# What fits.


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes the configuration of a model, and no weights."""

    def write(size):
        text_config(size).save_pretrained(tmp_path / size)
        return str(tmp_path / size)

    return write


def on(gib):
    return DeviceMemory("cuda:0 (a GPU)", round(gib * GIB), round(gib * GIB))


def test_a_run_that_fits_says_nothing(folder):
    config = run_of(folder("1.7B"))
    assert require_memory(config, on(79)) is None
    assert fit_of(config, on(79)).verdict == "fits"


def test_weights_and_optimizer_that_do_not_fit_are_an_error_with_remedies(folder):
    with pytest.raises(RunError) as caught:
        require_memory(run_of(folder("8B")), on(79))
    text = str(caught.value)
    assert "weights and optimiser alone take about 106.8 GiB" in text
    assert "79.0 GiB are free on cuda:0 (a GPU)" in text
    for part in ("model.lora.rank: 16", "model.sharding: fsdp", "g2rpo_trl", "g2rpo_verl"):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "gib", "part", "remedy"),
    [
        ({"rollout.batch_size": 192}, 60, "KV cache", "rollout.batch_size: "),
        (
            {"model.gradient_checkpointing": False, "optimization.micro_batch_tokens": 40_000},
            90,
            "activations",
            "model.gradient_checkpointing: true",
        ),
        (
            {"optimization.micro_batch_tokens": 400_000},
            79,
            "layer at work",
            "optimization.micro_batch_tokens: ",
        ),
        (
            {"rollout.engine": "vllm", "rollout.vllm_memory": 0.9},
            60,
            "vLLM",
            "a lower rollout.vllm",
        ),
        ({}, 32, "optimiser", "adapters (model.lora.rank: 16)"),
    ],
)
def test_a_warning_names_the_largest_part_and_what_makes_it_smaller(
    overrides, gib, part, remedy, folder
):
    text = require_memory(run_of(folder("1.7B"), **overrides), on(gib))
    assert text is not None
    assert f"most of it for its {part}" in text
    assert remedy in text
    assert "it may not fit" in text or "it is likely not to fit" in text


def test_the_rows_and_tokens_that_are_said_to_fit_do(folder):
    name = folder("1.7B")
    found = fit_of(run_of(name, **{"rollout.batch_size": 512}), on(60))
    assert found.verdict == "too large"
    assert found.rows % 8 == 0
    for rows, fits in ((found.rows, True), (found.rows + 16, False)):
        again = fit_of(run_of(name, **{"rollout.batch_size": rows}), on(60)).estimate
        assert (sum(again.phases["rollout"].values()) <= 0.9 * on(60).free) == fits
    assert fit_of(run_of(name), on(3)).rows == 0


def test_a_model_that_cannot_be_read_is_told_so(tmp_path):
    with pytest.raises(RunError, match="there is no such folder"):
        estimate_memory(run_of(str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be read"):
        estimate_memory(run_of(str(tmp_path)))


def test_no_weights_are_loaded_and_no_random_number_is_drawn(folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    model = meta_model(run_of(folder("32B")).model)  # 61 GiB, of which nothing is there
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert torch.equal(torch.rand(1), expected)


def test_processes_share_the_memory_of_a_cpu(monkeypatch):
    whole = device_memory("cpu")
    assert whole.name == "the cpu"
    assert 0 < whole.free <= whole.total
    for name, value in {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert device_memory("cpu").total == whole.total // 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(RunError, match="this machine has 0 cuda devices"):
        device_memory("cuda")
