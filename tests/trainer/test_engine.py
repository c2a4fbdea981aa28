"""Responses from a separate engine, whose log-probabilities differ from the policy's on purpose."""

import copy
import gc
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import g2rpo
from g2rpo_trainer.batch import Batch
from g2rpo_trainer.config import Model, Rollout
from g2rpo_trainer.data import open_run, open_source
from g2rpo_trainer.distributed import Share
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.optimizer import make_optimizer
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.prompts.batching import select_rows
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import concatenated, sample_with_policy
from g2rpo_trainer.scoring import Scorer
from g2rpo_trainer.step import training_step
from g2rpo_trainer.tasks import TASKS
from g2rpo_trainer.token_weights import importance_weights, sampler_metrics
from g2rpo_trainer.vllm import VLLMSampler, open_sampler
from g2rpo_trainer.vllm_engine import Sampled, VLLMEngine, engine_arguments
from g2rpo_trainer.vllm_requests import Request, make_requests, require_same_prompt
from g2rpo_trainer.vllm_weights import save_whole, weights_of

from . import tiny_models
from .adapters import OWN, needs_lora, save_own_adapter, tied_folder
from .parts import collector_of, learner_of

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def stand_in(monkeypatch):
    """Put a stand-in in the place of vLLM."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    yield
    sys.modules.pop("vllm", None)


class Skewed(VLLMEngine):
    """An engine whose log-probability of every other token is much lower, or higher."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.loads, self.closed = 0, False

    def load(self, weights):
        self.loads += 1
        super().load(weights)

    def generate(self, requests):
        self.requests = list(requests)
        self.exact = super().generate(requests)
        return [[skewed(response) for response in group] for group in self.exact]

    def close(self):
        self.closed = True


def skewed(response):
    logprobs = [
        value + (-1.5 if place % 2 else 0.25) for place, value in enumerate(response.logprobs)
    ]
    return response._replace(logprobs=logprobs)


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def arguments_of(config, folder, device):
    return engine_arguments(config.model, config.rollout, folder, device=device, ranks=1)


@pytest.fixture
def policy(random_policy):
    return replace(random_policy, model=copy.deepcopy(random_policy.model))


@pytest.fixture
def engine(random_policy_folder, tiny_run, stand_in):
    return Skewed(arguments_of(tiny_run(), str(random_policy_folder), CPU), CPU)


@pytest.fixture
def drawn(policy, prompts, records, tiny_run, engine):
    config = tiny_run("optimization.micro_batch_tokens=200", "rollout.limits={ocr: 3}")
    torch.manual_seed(0)
    sampler = VLLMSampler(engine, config.optimization.micro_batch_tokens)
    return sampler(policy, prompts, records, config.rollout), engine


def correction(mode, high, low=None):
    return Rollout(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=high,
        vllm_importance_sampling_clip_min=low,
    )


def ratios_of(found, options):
    return importance_weights(found.logprobs, found.sampler_logprobs, found.mask, options)


def metrics_of(found, options):
    return sampler_metrics(found.logprobs, found.sampler_logprobs, found.mask, options)


def expected_ratios(found):
    places = found.mask.nonzero(as_tuple=True)[1]
    return torch.where(places % 2 == 1, 1.5, -0.25).exp()


def test_the_policy_says_what_it_thinks_of_the_tokens(drawn, records):
    found, engine = drawn
    responses = [response for group in engine.exact for response in group]
    assert [row[mask].tolist() for row, mask in zip(found.tokens, found.mask, strict=True)] == [
        response.tokens for response in responses
    ]
    flat = torch.tensor([value for response in responses for value in response.logprobs])
    torch.testing.assert_close(found.logprobs[found.mask], flat, rtol=0, atol=2e-5)
    assert found.ended.tolist() == [response.ended for response in responses]
    limits = [3 if record.task == "ocr" else 8 for record in records for _ in range(2)]
    assert all(length <= limit for length, limit in zip(found.lengths, limits, strict=True))
    assert (found.entropies[found.mask] > 0).all()
    expected = expected_ratios(found)
    options = correction("token_truncate", 100.0)
    weights = ratios_of(found, options)[found.mask]
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=0)
    metrics = metrics_of(found, correction("token_truncate", 2.0))
    assert metrics["sampler/ratio/max"] == pytest.approx(4.4817, rel=1e-4)
    assert metrics["sampler/ratio/min"] == pytest.approx(0.7788, rel=1e-4)
    assert metrics["sampler/ratio/mean"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert metrics["sampler/frac_high"] == pytest.approx(float((expected > 2).float().mean()))
    assert metrics["sampler/frac_low"] == metrics["sampler/frac_masked"] == 0
    k3 = expected - 1 - expected.log()
    assert metrics["sampler/kl"] == pytest.approx(float(k3.mean()), rel=1e-3)
    assert metrics_of(replace(found, sampler_logprobs=None), options) == {}
    # Without weights the distance is reported all the same.
    off = correction("off", 2.0)
    assert ratios_of(found, off) is None
    assert metrics_of(found, off)["sampler/kl"] == metrics["sampler/kl"]


@pytest.mark.parametrize("bounds", [(None, 3.0), (0.9, 1.1)])
@pytest.mark.parametrize("how", ["truncate", "mask", "reject"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_modes_and_bounds_are_those_of_the_core(drawn, level, how, bounds):
    found, _ = drawn
    low, high = bounds
    expected, metrics = g2rpo.sampler_weights(
        found.logprobs,
        found.sampler_logprobs,
        found.mask,
        level=level,
        mode=how,
        low=low,
        high=high,
    )
    options = correction(f"{level}_{how}", high, low)
    assert torch.equal(ratios_of(found, options), expected)
    for name, value in metrics_of(found, options).items():
        assert value == pytest.approx(float(metrics[name]), rel=1e-6), name


@pytest.mark.parametrize("cap", [2.0, 1.0, 100.0])
def test_the_loss_is_weighted_as_by_hand(policy, prompts, drawn, tiny_run, cap):
    found, _ = drawn
    mode = "rollout.vllm_importance_sampling_mode=token_truncate"
    bound = f"rollout.vllm_importance_sampling_clip_max={cap}"
    config = tiny_run(mode, bound, "entropy.weight=0")
    groups = torch.arange(len(found.tokens)) // 2
    advantages = torch.linspace(-1, 2, len(groups))
    weights = ratios_of(found, config.rollout)
    batch = Batch(
        prompts=prompts,
        groups=groups,
        tokens=found.tokens,
        mask=found.mask,
        logprobs=found.logprobs,
        entropies=found.entropies,
        advantages=advantages,
        length_advantages=None,
        tasks=groups,
        task_names=list(TASKS),
        importance_weights=weights,
    )
    totals = g2rpo.batch_totals(batch.mask, entropies=batch.entropies, tasks=groups, num_tasks=6)
    terms, metrics = learner_of(policy, config).loss(batch, totals)
    weights = expected_ratios(found).clamp(max=cap)
    # On policy the ratio to the old log-probabilities is 1.
    expected = -(weights * advantages[found.mask.nonzero(as_tuple=True)[0]]).mean()
    assert float(terms.policy.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["ratio/max"]) == pytest.approx(1, abs=1e-4)


def test_a_step_samples_with_the_engine_and_gives_it_new_weights(policy, tiny_run, engine):
    config = tiny_run(
        "length.mode=off",
        "optimization.learning_rate=0.01",
        "rollout.vllm_importance_sampling_mode=token_truncate",
    )
    sampler = VLLMSampler(engine, config.optimization.micro_batch_tokens)
    optimizer = make_optimizer(policy, config.optimization)
    learner, progress = learner_of(policy, config, optimizer), Progress()
    source = open_source(config.data)
    with Scorer(config.rewards, config.data, source) as scorer:
        collector = collector_of(policy, config, scorer, sampler, source=source)
        for step in (1, 2):
            result = training_step(collector, learner, config.output, progress)
            assert engine.loads == step
            # With weights from before the update other ratios would come out.
            assert result.metrics["sampler/ratio/max"] == pytest.approx(4.4817, rel=1e-3)


def test_weights_are_handed_over_when_they_have_changed(policy, prompts, records, tiny_run, engine):
    config = tiny_run()
    sampler = VLLMSampler(engine, config.optimization.micro_batch_tokens)

    def loads_after_sampling():
        sampler(policy, prompts, records, config.rollout)
        return engine.loads

    assert [loads_after_sampling(), loads_after_sampling()] == [1, 1]
    with torch.no_grad():
        next(policy.model.parameters()).mul_(1.5)
    assert [loads_after_sampling(), loads_after_sampling()] == [2, 2]


def test_vllm_is_closed_with_its_sampler(policy, tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=dict))
    made = []
    monkeypatch.setattr(
        "g2rpo_trainer.vllm.VLLMEngine", lambda *a: made.append(VLLMEngine(*a)) or made[-1]
    )
    with open_sampler(tiny_run("rollout.engine=vllm"), policy) as sampler:
        assert isinstance(sampler, VLLMSampler)
        assert "shutdown" not in made[0]._llm.calls
    assert made[0]._llm.calls[-1] == "shutdown"


def test_a_share_gets_the_seeds_that_it_has_in_the_whole(
    policy, prompts, records, tiny_run, engine
):
    config = tiny_run()
    sampler = VLLMSampler(engine, config.optimization.micro_batch_tokens)

    def seeds(*share):
        torch.manual_seed(5)
        share = Share(6, *share)
        rows = list(share.padded)
        some = select_rows(prompts, torch.tensor(rows))
        asked = [records[row] for row in rows]
        found = sampler(policy, some, asked, config.rollout, share)
        # Repeats are left out.
        assert len(found.tokens) == 2 * len(share.own)
        return [request.sampling["seed"] for request in engine.requests]

    whole = seeds(tuple(range(6)), tuple(range(6)))
    assert len(set(whole)) == 6
    assert seeds((1, 4), (1, 4, 4)) == [whole[1], whole[4], whole[4]]


def test_parts_of_responses_keep_what_the_sampler_thought(drawn):
    found, _ = drawn
    rows = torch.tensor([3, 0])
    assert torch.equal(found.rows(rows).sampler_logprobs, found.sampler_logprobs[rows])
    both = concatenated([found, found])
    assert torch.equal(both.sampler_logprobs[len(found.tokens) :], found.sampler_logprobs)


def test_an_engine_that_is_missing_is_named(policy, tiny_run, monkeypatch):
    with open_sampler(tiny_run(), policy) as sampler:
        assert sampler is sample_with_policy
    monkeypatch.setitem(sys.modules, "vllm", None)
    with (
        pytest.raises(RunError, match=r"cannot be imported .*; pip install vllm"),
        open_sampler(tiny_run("rollout.engine=vllm"), policy),
    ):
        pass


def test_an_engine_that_cannot_start_says_what_to_change(policy, tiny_run, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN", "refuse")
    message = r"\(No available memory .*\); change rollout.vllm_memory \(it is 0.3\)"
    with (
        pytest.raises(RunError, match=message),
        open_sampler(tiny_run("rollout.engine=vllm"), policy),
    ):
        pass


@pytest.mark.parametrize(
    "setting", ["vllm=server", "vllm_devices=[1]", "vllm_start_seconds=60", "vllm_devices=[]"]
)
def test_keys_of_a_vllm_server_are_unknown(tiny_run, setting):
    with pytest.raises(RunError, match=rf"rollout.{setting.partition('=')[0]}: unknown key"):
        tiny_run(f"rollout.{setting}")


def test_a_limit_for_no_task_is_an_error(tiny_run):
    with pytest.raises(RunError, match=r"rollout.limits: .*'orc'"):
        open_run(tiny_run("rollout.limits={orc: 4}"))


def test_random_numbers_of_the_run_stay_its_own(policy, records, prompts, tiny_run, engine):
    requests = make_requests(policy, prompts, records, tiny_run().rollout, range(6))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    engine.load(weights_of(policy))
    engine.generate(requests)
    assert torch.equal(torch.rand(2), expected)


class FakeLLM:
    """Answers "7 8" to every request, and writes down what it is asked."""

    def __init__(self, **options):
        self.options, self.calls, self.loaded = options, [], {}
        self.llm_engine = self.engine_core = self

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {tags[0]}")

    def collective_rpc(self, method, kwargs):
        self.calls.append(method)
        self.loaded = dict(kwargs["weights_iterator"])

    def shutdown(self):
        self.calls.append("shutdown")

    def reset_prefix_cache(self):
        self.calls.append("reset prefixes")

    def reset_mm_cache(self):
        self.calls.append("reset inputs")

    def reset_encoder_cache(self):
        self.calls.append("reset images")

    def generate(self, prompts, parameters, use_tqdm):
        self.calls.append("generate")
        self.asked = list(zip(prompts, parameters, strict=True))
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}, {8: SimpleNamespace(logprob=-1.0)}]
        one = SimpleNamespace(token_ids=(7, 8), logprobs=logprobs, finish_reason="length")
        return [
            SimpleNamespace(outputs=[one] * p["n"], prompt_token_ids=self.reads(prompt))
            for prompt, p in self.asked
        ]


@pytest.mark.parametrize(
    ("device", "backend", "place"),
    [
        ("cpu", "uni", (None, None)),
        ("cuda:0", "uni", (None, None)),
        ("cuda:1", "external_launcher", ("0", "1")),
    ],
)
def test_vllm_starts_on_the_gpu_of_the_policy(tiny_run, monkeypatch, device, backend, place):
    """Without a launcher's variables it takes the first GPU."""
    started = []

    def llm(**options):
        found = os.environ.get("RANK"), os.environ.get("LOCAL_RANK")
        started.append((options["distributed_executor_backend"], found))
        return FakeLLM(**options)

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=llm, SamplingParams=dict))
    monkeypatch.setenv("WORLD_SIZE", "8")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    before, device = dict(os.environ), torch.device(device)
    VLLMEngine(arguments_of(tiny_run(), "folder", device), device)
    assert started == [(backend, place)]
    # VLLMEngine itself sets vLLM's own two.
    assert {**dict(os.environ), **before} == dict(os.environ)
    assert not {"RANK", "LOCAL_RANK", "MASTER_PORT"} & set(os.environ)


def test_what_vllm_is_asked(policy, prompts, records, tiny_run, monkeypatch):
    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    config = tiny_run(
        "rollout.limits={ocr: 3}", "rollout.stop=</a>", "rollout.max_prompt_length=56"
    )
    requests = make_requests(policy, prompts, records, config.rollout, range(6))
    engine = VLLMEngine(arguments_of(config, "folder", GPU), GPU)
    llm = engine._llm
    assert llm.options["logprobs_mode"] == "processed_logprobs"
    assert llm.options["enable_sleep_mode"]
    assert llm.options["generation_config"] == "vllm"
    assert llm.options["max_model_len"] == 64
    assert llm.options["distributed_executor_backend"] == "uni"
    read = iter([request.tokens for request in requests] * 2)
    llm.reads = lambda prompt: next(read)
    engine.load(weights_of(policy))
    for _ in range(2):
        answers = engine.generate(requests)
    # The second time the weights are what they were, but asleep.
    load = ["wake weights", "reload_weights", "reset prefixes", "reset inputs", "reset images"]
    first, second = ["wake kv_cache"], ["wake weights", "wake kv_cache"]
    sampled = ["generate", "sleep 1"]
    assert llm.calls == ["sleep 1", *load, *first, *sampled, *second, *sampled]
    assert llm.loaded.keys() == dict(weights_of(policy)).keys()
    assert answers == [[Sampled([7, 8], [-0.5, -1.0], False)] * 2] * 6
    engine.close()
    assert llm.calls[-1] == "shutdown"
    limits = [parameters["max_tokens"] for _, parameters in llm.asked]
    assert limits == [3 if record.task == "ocr" else 8 for record in records]
    prompt, parameters = llm.asked[0]
    assert prompt["multi_modal_data"]["image"] == records[0].images
    image = policy.tokenizer.convert_tokens_to_ids("<image>")
    assert prompt["prompt_token_ids"].count(image) == 1 < requests[0].tokens.count(image)
    assert parameters["stop"] == ["</a>"]
    assert parameters["detokenize"]
    # A text to stop at may be registered as special.
    assert parameters["skip_special_tokens"] is False
    assert parameters["stop_token_ids"] == list(policy.eos_ids)
    assert set(parameters["logit_bias"]) == set(policy.banned_ids.tolist())
    assert parameters["seed"] == 0


def test_a_prompt_that_is_read_otherwise_is_an_error():
    request = Request(
        prompt={"prompt_token_ids": [5, 9, 6]},
        sampling={"logit_bias": {8: -100.0, 9: -100.0}},
        tokens=[5, 9, 9, 6],
    )
    # The placeholder's own number means nothing.
    require_same_prompt(request, [5, 8, 9, 6])
    for other in ([5, 9, 6], [5, 9, 9, 9, 6], [5, 9, 9, 7], [1, 5, 9, 9, 6]):
        with pytest.raises(RunError, match=r"as [345] tokens, unlike the policy"):
            require_same_prompt(request, other)


def test_a_video_is_refused(policy, prompts, records, tiny_run):
    asked = [replace(record, videos=["a.mp4"]) for record in records]
    with pytest.raises(RunError, match="takes no videos"):
        make_requests(policy, prompts, asked, tiny_run().rollout, range(6))


@needs_lora
@pytest.mark.parametrize("kind", ["output", "embedding", "both", "whole output", "tokens"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_vllm_takes_over_all_of_an_adapter_or_is_refused(
    kind, is_tied, folders, tmp_path, tiny_run, monkeypatch
):
    base = folders("llama")
    base = tied_folder(base, tmp_path / "tied") if is_tied else base
    save_own_adapter(base, tmp_path / "own", **OWN[kind])
    policy = load_policy(str(tmp_path / "own"), device="cpu")
    config = tiny_run(f"model.name={tmp_path / 'own'}", "rollout.engine=vllm")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=dict))
    if is_tied or kind not in ("output", "embedding", "both"):
        with (
            pytest.raises(RunError, match=r"vllm.* cannot take over .*(lm_head|embed_tokens)"),
            open_sampler(config, policy),
        ):
            pass
        return
    with open_sampler(config, policy):
        pass
    plain = load_policy(str(base), device="cpu")
    weights = dict(weights_of(policy))
    assert weights.keys() == dict(weights_of(plain)).keys()
    plain.model.load_state_dict(weights)
    prompts = encode_prompts(policy, tiny_models.make_records("llama"))
    with torch.no_grad():
        found, expected = (each.model(**prompts).logits for each in (plain, policy))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_lora
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_weights_with_an_adapter_are_merged(folders, family, tmp_path):
    folder = folders(family)
    policy = load_policy(str(folder), device="cpu", model=Model(lora={"rank": 2}))
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    save_whole(policy, tmp_path)
    merged = load_policy(str(tmp_path), device="cpu", model=Model())
    prompts = encode_prompts(policy, tiny_models.make_records(family))
    with torch.no_grad():
        logits = policy.model(**prompts).logits
        torch.testing.assert_close(merged.model(**prompts).logits, logits, rtol=1e-4, atol=1e-4)
    plain = dict(weights_of(load_policy(str(folder), device="cpu", model=Model())))
    found = dict(weights_of(policy))
    assert found.keys() == plain.keys()
    assert any(not torch.equal(found[name], plain[name]) for name in plain)
    for name, weight in policy.model.named_parameters():
        assert torch.equal(weight, before[name])
    policy.save(tmp_path / "checkpoint")
    again = dict(weights_of(load_policy(str(tmp_path / "checkpoint"), device="cpu", model=Model())))
    assert again.keys() == found.keys()
    assert all(torch.equal(again[name], weight) for name, weight in found.items())


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_weights_have_the_names_of_the_files(folders, family):
    from safetensors.torch import load_file

    folder = folders(family)
    stored = load_file(folder / "model.safetensors")
    found = dict(weights_of(load_policy(str(folder), device="cpu", model=Model())))
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], weight) for name, weight in stored.items())


def test_the_built_in_policy_is_refused(random_policy, tiny_run):
    with (
        pytest.raises(RunError, match="the built-in policy by other names"),
        open_sampler(tiny_run("model.name=builtin", "rollout.engine=vllm"), random_policy),
    ):
        pass


def test_a_gguf_is_given_as_a_folder(policy, prompts, records, tiny_run, stand_in):
    # The stand-in could not read this name: what it reads is what was written for it.
    described = tiny_run("model.name=nowhere", "model.gguf_file=a.gguf", "rollout.engine=vllm")
    with open_sampler(described, policy) as sampler:
        found = sampler(policy, prompts, records, described.rollout)
    ratios = ratios_of(found, correction("token_truncate", 3.0))[found.mask]
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=1e-4)


def test_an_engine_of_a_policy_that_was_made_in_memory(random_policy, tmp_path):
    policy = make_policy(random_policy.model, random_policy.processor)
    save_whole(policy, tmp_path)
    assert load_policy(str(tmp_path), device="cpu", model=Model()).eos_ids == policy.eos_ids


def test_memory_is_given_back_before_vllm_wakes(policy, prompts, records, tiny_run, monkeypatch):
    """It allocates outside of PyTorch, which keeps the memory of gradients that are gone."""
    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    config = tiny_run()
    engine = VLLMEngine(arguments_of(config, "folder", GPU), GPU)
    llm, sampler = engine._llm, VLLMSampler(engine, config.optimization.micro_batch_tokens)
    llm.reads = lambda prompt: prompt["prompt_token_ids"]
    zero_grad = policy.model.zero_grad
    monkeypatch.setattr(
        policy.model,
        "zero_grad",
        lambda set_to_none: [llm.calls.append("forget gradients"), zero_grad(set_to_none)],
    )
    monkeypatch.setattr(gc, "collect", lambda: llm.calls.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: llm.calls.append("empty"))
    for weight in policy.model.parameters():
        weight.grad = torch.ones_like(weight)
    text_only = [replace(record, images=()) for record in records]
    sampler(policy, encode_prompts(policy, text_only), text_only, config.rollout)
    assert all(weight.grad is None for weight in policy.model.parameters())
    kept = [call for call in llm.calls if "reset" not in call]
    gives_back = ["collect", "empty"]
    assert kept == [
        "sleep 1",
        "forget gradients",
        *gives_back,
        "wake weights",
        "reload_weights",
        *gives_back,
        "wake kv_cache",
        "generate",
        "sleep 1",
    ]


@pytest.fixture
def of_an_adapter(stand_in, folders, tiny_run):
    """Return a function that describes a run of bfloat16 with an adapter, and loads its policy."""

    def load(family="llama", *settings):
        config = tiny_run(
            f"model.name={folders(family)}",
            "model.dtype=bfloat16",
            "rollout.engine=vllm",
            "data.source=builtin-text",
            "length.mode=off",
            "length.targets={}",
            *settings,
        )
        return config, load_policy(config.model.name, device="cpu", model=config.model)

    return load


def changed(policy, value):
    """Set the outer matrices of an adapter to a value."""
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(value)


@needs_lora
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_vllm_gets_the_adapter_itself(of_an_adapter, family):
    """Changes of the sum that bfloat16 would lose arrive, one after the other."""
    config, policy = of_an_adapter(family, "model.lora.rank=3", "rollout.vllm_adapter=request")
    base = {name: weight.clone() for name, weight in weights_of(policy)}
    records = tiny_models.make_records(family)
    prompts = encode_prompts(policy, records)
    with open_sampler(config, policy) as sampler:
        engine = sampler._engine._llm
        assert engine.rank == 8
        for number, change in enumerate((0.0, 1e-5, 2e-5), 1):
            changed(policy, change)
            merged = weights_of(policy)
            moved = torch.cat([(weight != base[name]).flatten() for name, weight in merged])
            assert float(moved.float().mean()) < 0.05
            for _ in range(2):
                drawn = sampler(policy, prompts, records, config.rollout)
            assert engine.adapters == [*range(1, number + 1)]
            loaded = dict(engine.policy.model.named_parameters())
            for name, weight in policy.model.named_parameters():
                if "lora_" in name:
                    theirs = loaded[name.replace("default", f"policy-{number}")]
                    assert torch.equal(theirs, weight), name
            differences = (drawn.logprobs - drawn.sampler_logprobs)[drawn.mask]
            assert float(differences.abs().max()) < 0.1


@needs_lora
def test_an_adapter_is_merged_unless_the_run_says_otherwise(of_an_adapter):
    config, policy = of_an_adapter("llama", "model.lora.rank=3")
    with open_sampler(config, policy) as sampler:
        records = tiny_models.make_records("llama")
        sampler(policy, encode_prompts(policy, records), records, config.rollout)
        assert not sampler._engine._llm.rank


@needs_lora
@pytest.mark.parametrize(
    ("family", "settings", "fault"),
    [
        ("qwen2_5_vl", ["model.lora.target_modules=[attn.proj]"], r"the adapter of .*visual.*"),
        ("llama", ["model.lora.target_modules=[lm_head]"], "the adapter of lm_head"),
    ],
)
def test_what_vllm_cannot_add_is_refused_at_the_start(of_an_adapter, family, settings, fault):
    config, policy = of_an_adapter(
        family, "model.lora.rank=3", "rollout.vllm_adapter=request", *settings
    )
    with (
        pytest.raises(RunError, match=f"vllm_adapter is 'request', .* {fault} that way; name"),
        open_sampler(config, policy),
    ):
        pass
