"""Responses from a separate engine, whose log-probabilities differ from the policy's on purpose."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import g2rpo
from g2rpo.run.errors import RunError
from g2rpo.run.progress import Progress
from g2rpo.run.scorer import Scorer
from g2rpo.run.shaping import Shaping
from g2rpo_torch.trainer.learning.batch import Batch
from g2rpo_torch.trainer.learning.optimizer import make_optimizer
from g2rpo_torch.trainer.learning.update import batch_loss
from g2rpo_torch.trainer.rollout.engine import (
    EngineSampler,
    Sampled,
    importance_weights,
    open_sampler,
    sampler_metrics,
)
from g2rpo_torch.trainer.rollout.sampling import concatenated, sample_as_described
from g2rpo_torch.trainer.rollout.vllm_engine import VLLMEngine
from g2rpo_torch.trainer.step import training_step


class Skewed:
    """An engine that thinks of every other token that it is much less, or more, likely."""

    def __init__(self):
        self.loads = 0

    def load(self, policy):
        self.loads += 1

    def generate(self, policy, prompts, records, options):
        found = sample_as_described(policy, prompts, records, options)
        self.exact = found
        sampled = []
        for row, length in enumerate(found.lengths.tolist()):
            skew = [-1.5 if (row + place) % 2 else 0.25 for place in range(length)]
            logprobs = (found.logprobs[row, :length] + torch.tensor(skew)).tolist()
            tokens = found.tokens[row, :length].tolist()
            sampled.append(Sampled(tokens, logprobs, bool(found.ended[row])))
        each = options.num_generations
        return [sampled[start : start + each] for start in range(0, len(sampled), each)]


@pytest.fixture
def policy(random_policy):
    return replace(random_policy, model=copy.deepcopy(random_policy.model))


@pytest.fixture
def drawn(policy, prompts, records, tiny_run):
    description, engine = tiny_run("optimization.micro_batch_tokens=200"), Skewed()
    torch.manual_seed(0)
    sampler = EngineSampler(engine, description)
    return sampler(policy, prompts, records, description.rollout), engine


def test_the_policy_says_what_it_thinks_of_the_tokens(drawn):
    found, engine = drawn
    for name in ("tokens", "logprobs", "entropies"):
        ours, exact = getattr(found, name), getattr(engine.exact, name)
        torch.testing.assert_close(ours[found.mask], exact[found.mask], rtol=0, atol=2e-5)
    assert torch.equal(found.mask, engine.exact.mask[:, : found.mask.shape[1]])
    assert found.texts == engine.exact.texts
    assert torch.equal(found.ended, engine.exact.ended)
    rows, places = found.mask.nonzero(as_tuple=True)
    expected = torch.where((rows + places) % 2 == 1, 1.5, -0.25).exp()
    weights = importance_weights(found)[found.mask]
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=0)
    metrics = sampler_metrics(found, 2.0)
    assert metrics["sampler/ratio_max"] == pytest.approx(4.4817, rel=1e-4)
    assert metrics["sampler/ratio_mean"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert metrics["sampler/capped_ratio"] == pytest.approx(float((expected > 2).float().mean()))
    assert sampler_metrics(found._replace(sampler_logprobs=None), 2.0) == {}


@pytest.mark.parametrize("cap", [2.0, 1.0, 100.0])
def test_the_loss_is_weighted_as_by_hand(policy, prompts, drawn, tiny_run, cap):
    found, _ = drawn
    description = tiny_run(f"rollout.importance_cap={cap}", "entropy.weight=0")
    groups = torch.arange(len(found.tokens)) // 2
    advantages = torch.linspace(-1, 2, len(groups))
    batch = Batch(
        prompts, groups, *found[:4], advantages, None, groups, None, importance_weights(found)
    )
    totals = g2rpo.batch_totals(batch.mask, entropies=batch.entropies, tasks=groups, num_tasks=6)
    terms, metrics = batch_loss(policy, batch, totals, description)
    rows, places = found.mask.nonzero(as_tuple=True)
    weights = torch.where((rows + places) % 2 == 1, 1.5, -0.25).exp().clamp(max=cap)
    # On policy the ratio to the old log-probabilities is 1.
    expected = -(weights * advantages[rows]).mean()
    assert float(terms.policy.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["ratio/max"]) == pytest.approx(1, abs=1e-4)


def test_a_step_samples_with_the_engine_and_gives_it_new_weights(policy, tiny_run):
    description, engine = tiny_run("length.mode=off"), Skewed()
    sampler = EngineSampler(engine, description)
    optimizer = make_optimizer(policy, description.optimization)
    shaping, progress = Shaping(description), Progress()
    with Scorer(description) as scorer:
        for step in (1, 2):
            result = training_step(
                policy, optimizer, shaping, description, progress, scorer, sampler=sampler
            )
            assert engine.loads == step
            assert result.metrics["sampler/ratio_max"] > 4


def test_weights_are_handed_over_when_they_have_changed(policy, prompts, records, tiny_run):
    description, engine = tiny_run(), Skewed()
    sampler = EngineSampler(engine, description)

    def loads_after_sampling():
        sampler(policy, prompts, records, description.rollout)
        return engine.loads

    assert [loads_after_sampling(), loads_after_sampling()] == [1, 1]
    with torch.no_grad():
        next(policy.model.parameters()).mul_(1.5)
    assert [loads_after_sampling(), loads_after_sampling()] == [2, 2]


def test_parts_of_responses_keep_what_the_sampler_thought(drawn):
    found, _ = drawn
    rows = torch.tensor([3, 0])
    assert torch.equal(found.rows(rows).sampler_logprobs, found.sampler_logprobs[rows])
    both = concatenated([found, found])
    assert torch.equal(both.sampler_logprobs[len(found.tokens) :], found.sampler_logprobs)


def test_an_engine_that_is_missing_or_does_not_fit_is_named(policy, tiny_run, monkeypatch):
    description = tiny_run("rollout.engine=vllm")
    assert open_sampler(tiny_run(), policy) is sample_as_described
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RunError, match="not installed; pip install vllm"):
        open_sampler(description, policy)
    monkeypatch.setattr(policy.model, "_hf_peft_config_loaded", True, raising=False)
    with pytest.raises(RunError, match="takes no low-rank adapter"):
        open_sampler(description, policy)


def test_a_limit_for_no_task_is_an_error(policy, tiny_run):
    with pytest.raises(RunError, match=r"rollout.limits: .*'orc'"):
        open_sampler(tiny_run("rollout.limits={orc: 4}"), policy)


class FakeLLM:
    """Answers "7 8 end" to every request, and writes down what it is asked."""

    def __init__(self, **options):
        self.options, self.calls, self.loaded = options, [], {}

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        self.calls.append(f"wake {tags[0]}")

    def load_weights(self, weights):
        self.loaded = dict(weights)

    def apply_model(self, function):
        self.calls.append("load")
        function(self)

    def reset_prefix_cache(self):
        self.calls.append("reset")

    def generate(self, prompts, parameters, use_tqdm):
        self.calls.append("generate")
        self.asked = list(zip(prompts, parameters, strict=True))
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}, {8: SimpleNamespace(logprob=-1.0)}]
        one = SimpleNamespace(token_ids=(7, 8), logprobs=logprobs, finish_reason="length")
        return [SimpleNamespace(outputs=[one] * p["n"]) for p in parameters]


def test_what_vllm_is_asked(policy, prompts, records, tiny_run, monkeypatch):
    fake = SimpleNamespace(LLM=FakeLLM, SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    description = tiny_run("rollout.engine=vllm", "rollout.limits={ocr: 3}", "rollout.stop=</a>")
    engine = VLLMEngine(description)
    llm = engine._llm
    assert llm.options["logprobs_mode"] == "processed_logprobs"
    engine.load(policy)
    for _ in range(2):
        answers = engine.generate(policy, prompts, records, description.rollout)
    # The second time the weights are what they were, but asleep.
    asked = ["sleep 1", "wake weights", "load", "reset", "wake kv_cache", "generate", "sleep 1"]
    assert llm.calls == [*asked, "wake weights", "wake kv_cache", "generate", "sleep 1"]
    assert torch.equal(llm.loaded["lm_head.weight"], policy.model.lm_head.weight)
    assert answers == [[Sampled([7, 8], [-0.5, -1.0], False)] * 2] * 6
    limits = [parameters["max_tokens"] for _, parameters in llm.asked]
    assert limits == [3 if record["task_type"] == "ocr" else 8 for record in records]
    prompt, parameters = llm.asked[0]
    assert prompt["multi_modal_data"]["image"] is records[0]["images"][0]
    assert "<image>" in prompt["prompt"]
    assert parameters["stop"] == ["</a>"]
    assert set(parameters["logit_bias"]) == set(policy.banned_ids.tolist())


def test_a_prompt_of_text_goes_as_tokens(policy, records, tiny_run):
    from g2rpo_torch.trainer.rollout.vllm_engine import requests

    mask = torch.tensor([[0, 1, 1]])
    inputs = {"input_ids": torch.tensor([[0, 11, 12]]), "attention_mask": mask}
    (request,) = requests(policy, inputs, [{**records[0], "images": []}])
    assert request == {"prompt_token_ids": [11, 12]}
