"""Which responses and tokens a step learns from, and how much each task counts."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import g2rpo
from g2rpo_trainer import train
from g2rpo_trainer.batch import Batch
from g2rpo_trainer.optimizer import make_optimizer
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.sampling import sample_with_policy
from g2rpo_trainer.scoring import Rewards
from g2rpo_trainer.step import training_step
from g2rpo_trainer.token_weights import high_entropy_tokens

from .parts import collector_of, learner_of

TASKS = ["grounding", "vqa", "spatial", "chart", "ocr", "maths"]
FOUR = ["rollout.num_generations=4", "length.mode=off"]


@pytest.fixture
def policy(random_policy):
    return replace(random_policy, model=copy.deepcopy(random_policy.model))


@pytest.fixture
def batch(prompts, completions):
    groups = torch.arange(len(completions.tokens)) // 4
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(len(groups), generator=generator)
    return Batch(
        prompts,
        groups,
        completions.tokens,
        completions.mask,
        completions.logprobs,
        completions.entropies,
        advantages,
        None,
        tasks=groups,
        task_names=TASKS,
    )


class Cut:
    """Samples as usual, and says of every third response, or of all, that it was cut off."""

    def __init__(self, every=3):
        self.every = every

    def __call__(self, policy, prompts, records, options, share=None):
        self.prompts = prompts
        found = sample_with_policy(policy, prompts, records, options, share)
        ended = torch.arange(len(found.tokens)) % self.every > 0
        self.found = replace(found, ended=ended)
        return self.found


class Judge:
    """Rewards that differ between the responses to a prompt, the third and sixth the most."""

    def __call__(self, records, texts):
        column = np.asarray([(7 * n) % 5 / 4 for n in range(len(texts))], np.float32)
        return Rewards(*[column] * 4)

    def metrics(self):
        return {}


def one_step(policy, config, sampler):
    optimizer, progress = make_optimizer(policy, config.optimization), Progress()
    collector = collector_of(policy, config, Judge(), sampler)
    learner = learner_of(policy, config, optimizer)
    result = training_step(collector, learner, config.output, progress)
    return result, progress


def weights_of(policy):
    return torch.cat([weight.detach().flatten() for weight in policy.model.parameters()])


@pytest.mark.parametrize("mode", ["off", "loss", "all"])
def test_truncated_responses_count_where_the_option_says(policy, tiny_run, mode):
    config = tiny_run(f"optimization.mask_truncated_completions={mode}", *FOUR)
    by_hand = replace(policy, model=copy.deepcopy(policy.model))
    sampler = Cut()
    result, _ = one_step(policy, config, sampler)
    found, groups = sampler.found, torch.arange(24) // 4
    rewards = Judge()([None] * 6, found.texts).reward
    if mode == "all":
        rewards = np.where(found.ended, rewards, np.float32(np.nan))
    advantages = g2rpo.gaussian_advantages(rewards, groups.numpy(), groups.numpy())
    batch = Batch(
        prompts=sampler.prompts,
        groups=groups,
        tokens=found.tokens,
        mask=found.mask,
        logprobs=found.logprobs,
        entropies=found.entropies,
        advantages=torch.tensor(advantages),
        length_advantages=None,
        tasks=groups,
        task_names=TASKS,
    )
    if mode != "off":
        batch = batch.rows(found.ended.nonzero()[:, 0])
    optimizer = make_optimizer(by_hand, config.optimization)
    for group in optimizer.param_groups:
        group["lr"] = result.metrics["learning_rate"]
    metrics = learner_of(by_hand, config, optimizer).update(batch, Progress())
    assert torch.equal(weights_of(by_hand), weights_of(policy))
    assert metrics["loss/total"] == pytest.approx(result.metrics["loss/total"], rel=1e-5)
    assert [row["advantage"] for row in result.completions] == pytest.approx(advantages.tolist())

    cut = ~found.ended
    assert result.metrics["completions/clipped_ratio"] == pytest.approx(1 / 3)
    share = float(found.lengths[cut].sum() / found.lengths.sum())
    expected = None if mode == "off" else pytest.approx(share)
    assert result.metrics.get("completions/masked_ratio") == expected
    # What is reported of rewards is of all responses.
    assert result.metrics["reward"] == pytest.approx(Judge()([], found.texts).reward.mean())


@pytest.mark.parametrize("mode", ["loss", "all"])
def test_a_step_of_truncated_responses_alone_changes_nothing(policy, tiny_run, mode):
    config = tiny_run(f"optimization.mask_truncated_completions={mode}", *FOUR)
    before = weights_of(policy)
    result, progress = one_step(policy, config, Cut(every=1))
    assert torch.equal(weights_of(policy), before)
    assert (progress.step, progress.empty_steps) == (1, 1)
    assert result.metrics["completions/masked_ratio"] == 1
    assert "loss/policy" not in result.metrics


def test_prompts_whose_signal_was_truncated_are_drawn_anew(policy, tiny_run):
    """With every second response masked everywhere, equal ones remain."""

    class Alternating(Judge):
        def __call__(self, records, texts):
            column = np.arange(len(texts), dtype=np.float32) % 2
            return Rewards(*[column] * 4)

    dynamic = ["rollout.dynamic_sampling.mode=signal", "rollout.dynamic_sampling.max_tries=1"]
    for mode, dropped in (("loss", 0), ("all", 6)):
        described = tiny_run(f"optimization.mask_truncated_completions={mode}", *FOUR, *dynamic)
        optimizer = make_optimizer(policy, described.optimization)
        collector = collector_of(policy, described, Alternating(), Cut(every=2))
        learner = learner_of(policy, described, optimizer)
        result = training_step(collector, learner, described.output, Progress())
        assert result.metrics["sampling/dropped"] == dropped


def test_the_policy_term_is_over_the_tokens_of_high_entropy(policy, batch, tiny_run):
    config = tiny_run("entropy.low=8", "entropy.high=9", "optimization.beta=0.1")
    batch = replace(batch, ref_logprobs=batch.logprobs - 0.1)
    kept = g2rpo.high_entropy_mask(batch.entropies, batch.mask, batch.tasks, share=0.3)
    restricted, metrics = high_entropy_tokens(batch, 0.3)
    learner = learner_of(policy, config)
    totals = learner.totals(batch)
    terms, _ = learner.loss(restricted, totals)
    plain, _ = learner.loss(batch, totals)
    # On policy, and over all tokens.
    by_hand = -(batch.advantages[:, None] * kept).sum() / batch.mask.sum()
    torch.testing.assert_close(terms.policy, by_hand, rtol=1e-4, atol=1e-6)
    assert abs(terms.policy - plain.policy) > 0.01
    assert (terms.entropy, terms.kl) == (plain.entropy, plain.kl)
    assert terms.entropy > 0 < terms.kl
    assert metrics["frac_high_entropy"] == pytest.approx(float(kept.sum() / batch.mask.sum()))
    ocr = batch.tasks == TASKS.index("ocr")
    share = float(kept[ocr].sum() / batch.mask[ocr].sum())
    assert metrics["frac_high_entropy/ocr"] == pytest.approx(share)
    same, nothing = high_entropy_tokens(batch, 1.0)
    assert same is batch
    assert nothing == {}


def test_a_step_learns_from_tokens_of_high_entropy(policy, tiny_run):
    settings = ["optimization.top_entropy_quantile=0.25", *FOUR]
    result, _ = one_step(policy, tiny_run(*settings), sample_with_policy)
    assert 0.2 < result.metrics["frac_high_entropy"] < 0.4
    for task in TASKS:
        assert 0 < result.metrics[f"frac_high_entropy/{task}"] < 0.5


def test_the_second_update_leaves_out_what_the_first_has_left_behind(policy, batch, tiny_run):
    def learn(threshold):
        one = replace(policy, model=copy.deepcopy(policy.model))
        settings = ["optimization.updates_per_batch=2", "optimization.learning_rate=0.02"]
        if threshold:
            settings.append(f"optimization.off_policy_mask_threshold={threshold}")
        config = tiny_run(*settings)
        optimizer = make_optimizer(one, config.optimization)
        metrics = learner_of(one, config, optimizer).update(batch, Progress())
        return metrics, weights_of(one)

    plain, without = learn(None)
    assert "off_policy/masked_ratio" not in plain
    far, beyond = learn(100.0)
    assert far["off_policy/masked_ratio"] == 0
    assert torch.equal(beyond, without)
    near, masked = learn(1e-3)
    # The mean of two updates, of which the first is on policy.
    negative = float((batch.advantages[batch.groups >= 3] < 0).float().mean())
    assert 0 < near["off_policy/masked_ratio"] <= negative / 2
    assert not torch.equal(masked, without)


def test_a_sampler_that_is_far_away_masks_in_the_first_update(policy, batch, tiny_run):
    """A response is pushed by the sum of its terms: where that is positive it counts."""
    length = torch.zeros_like(batch.advantages)
    length[:4] = 100.0
    skewed = replace(batch, sampler_logprobs=batch.logprobs + 1.0, length_advantages=length)
    config = tiny_run(
        "optimization.updates_per_batch=2",
        "optimization.off_policy_mask_threshold=0.9",
        "optimization.learning_rate=1e-9",
    )
    optimizer = make_optimizer(policy, config.optimization)
    metrics = learner_of(policy, config, optimizer).update(skewed, Progress())
    negative = batch.advantages < 0
    negative[:4] = False
    assert metrics["off_policy/masked_ratio"] == pytest.approx(float(negative.float().mean()))


def metrics_of(config):
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{n: v for n, v in record.items() if "time" not in n} for record in records]


def builtin(tiny_run, *settings, folder="run"):
    """A run with the policy of the package, whose answers get rewards."""
    return tiny_run(
        "model.name=builtin",
        "data.tasks=[grounding, ocr]",
        "data.eval_items=1",
        "rollout.prompts_per_step=4",
        "rollout.num_generations=4",
        "rollout.max_completion_length=32",
        "optimization.warmup_steps=0",
        "entropy.weight=0",
        "output.equity_steps=1",
        *settings,
        folder=folder,
    )


def test_a_task_weight_scales_the_gradient_of_its_task(tiny_run):
    settings = ["optimization.steps=1", "length.only_right=false"]
    plain = builtin(tiny_run, *settings, folder="plain")
    double = builtin(tiny_run, *settings, "task_weights.weights={ocr: 2}", folder="double")
    train(plain)
    train(double)
    (one,), (other,) = metrics_of(plain), metrics_of(double)
    name = "equity/grad_norm/{}".format
    assert one[name("ocr")] > 0
    assert other[name("ocr")] == pytest.approx(2 * one[name("ocr")], rel=1e-4)
    assert other[name("grounding")] == pytest.approx(one[name("grounding")], rel=1e-5)
    assert (other["task_weight/ocr"], other["task_weight/grounding"]) == (2, 1)
    samples = [(Path(d.output.dir) / "completions.jsonl").read_text() for d in (plain, double)]
    assert samples[0] == samples[1]


def test_task_weights_follow_the_measured_norms_and_survive_a_checkpoint(tiny_run):
    settings = ["optimization.schedule=constant", "task_weights.adapt=2", "output.equity_steps=0"]
    whole = builtin(tiny_run, *settings, "optimization.steps=8", folder="whole")
    train(whole)
    lines = metrics_of(whole)
    weights = np.ones(2)
    for line in lines:
        norms = [line.get(f"equity/grad_norm/{task}") for task in ("grounding", "ocr")]
        assert all(n is not None for n in norms) == (line["step"] % 2 == 0)
        if line["step"] % 2 == 0:
            weights = g2rpo.adapt_task_weights(np.asarray(norms, np.float64), weights)
        found = [line[f"task_weight/{task}"] for task in ("grounding", "ocr")]
        assert found == pytest.approx(weights.tolist())
    assert abs(np.log(weights[0])) > 0.01

    train(builtin(tiny_run, *settings, "optimization.steps=3", folder="parts"))
    parts = builtin(tiny_run, *settings, "optimization.steps=8", folder="parts")
    train(parts, resume=True)
    assert metrics_of(parts) == lines
