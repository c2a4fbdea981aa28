"""Dynamic sampling: which prompts are dropped, what replaces them, and where the run then is."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import g2rpo_trainer.loop
from g2rpo_trainer import train
from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_source
from g2rpo_trainer.metrics import Stopwatch
from g2rpo_trainer.optimizer import make_optimizer
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.rollouts import prompts_to_keep
from g2rpo_trainer.scoring import Rewards, Scorer
from g2rpo_trainer.step import training_step

from .parts import collector_of, learner_of

SIGNAL = ("rollout.dynamic_sampling.mode=signal", "length.mode=off")


class Judge:
    """Gives all responses to prompts of some tasks the same reward."""

    def __init__(self, *dull: str) -> None:
        self.dull = dull

    def __call__(self, records, texts):
        each = len(texts) // len(records)
        rewards = [
            float(number % 2 and record.task not in self.dull)
            for record in records
            for number in range(each)
        ]
        return Rewards(*[np.asarray(rewards, np.float32)] * 4)

    def metrics(self):
        return {}


def rewards_of(*rows):
    column = np.asarray(rows, np.float32).reshape(-1)
    return Rewards(*[column] * 4)


def test_what_is_kept():
    nan, inf = float("nan"), float("inf")
    rewards = rewards_of(
        [0.0, 0.0], [0.0, 1.0], [0.5, 0.5], [nan, 1.0], [nan, nan], [1.0, 1.0], [1.0, 0.99]
    )
    mode = "rollout.dynamic_sampling.mode"

    def kept(*settings):
        options = load_config(settings=settings).rollout.dynamic_sampling
        return prompts_to_keep(rewards, 7, options).tolist()

    assert kept() == kept(f"{mode}=off") == [True] * 7
    assert kept(f"{mode}=signal") == [False, True, False, False, False, False, True]
    assert kept(f"{mode}=accuracy") == [False, True, True, False, False, False, False]
    wide = "rollout.dynamic_sampling.band=[0.01, 0.999]"
    assert kept(f"{mode}=accuracy", wide)[-1]
    options = load_config(settings=[f"{mode}=signal"]).rollout.dynamic_sampling
    extreme = rewards_of([inf, inf], [-inf, -inf], [-inf, inf], [0.0, inf])
    assert prompts_to_keep(extreme, 4, options).tolist() == [False, False, True, True]


def drawn(policy, config, judge, position=0):
    torch.manual_seed(0)
    return collector_of(policy, config, judge).collect(position, Stopwatch())


def test_dropped_prompts_are_replaced_by_the_next(random_policy, tiny_run):
    config = tiny_run(*SIGNAL)
    found = drawn(random_policy, config, Judge("ocr", "chart"), position=12)
    # Six tasks take turns: six prompts, two more, and one of these two again.
    assert found.tries == 2
    assert len(found.problems) == 8
    assert found.keeps.tolist() == [True, True, True, False, False, True, True, True]
    expected = open_source(config.data).training_records(seed=0, position=12, prompts=8)
    assert found.problems == [record.problem for record in expected]
    assert len(found.prompts["input_ids"]) == 6
    assert len(found.texts) == len(found.tokens) == len(found.rewards.reward) == 16
    assert found.kept.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    metrics = found.metrics()
    assert metrics["sampling/drawn"] == 8
    assert metrics["sampling/dropped"] == 2
    assert metrics["sampling/dropped/ocr"] == 1
    assert metrics["sampling/dropped/vqa"] == 0


def test_tries_are_bounded(random_policy, tiny_run):
    only_maths = Judge("grounding", "vqa", "spatial", "chart", "ocr")
    config = tiny_run(*SIGNAL, "rollout.dynamic_sampling.max_tries=2")
    found = drawn(random_policy, config, only_maths)
    assert found.tries == 2
    assert len(found.problems) == 11
    assert int(found.keeps.sum()) == 1


def one_step(policy, config, judge, progress):
    optimizer = make_optimizer(policy, config.optimization)
    collector, learner = collector_of(policy, config, judge), learner_of(policy, config, optimizer)
    return training_step(collector, learner, config.output, progress)


@pytest.fixture
def policy(random_policy):
    return replace(random_policy, model=copy.deepcopy(random_policy.model))


def test_a_step_learns_from_what_is_kept(policy, tiny_run):
    """The same update as from the kept prompts alone, and a report of all."""
    config, progress = tiny_run(*SIGNAL), Progress(step=3, position=12)
    result = one_step(policy, config, Judge("ocr", "chart"), progress)
    assert (progress.step, progress.position, progress.empty_steps) == (4, 20, 0)
    assert result.metrics["sampling/dropped"] == 2
    # One of two responses is right, but to the prompts that are dropped none.
    assert result.metrics["reward"] == pytest.approx(6 / 16)
    assert result.metrics["reward/ocr"] == 0
    # The loss itself is zero on policy, but for rounding.
    assert result.metrics["grad_norm"] > 0
    assert len(result.completions) == 16
    for row in result.completions:
        assert row["kept"] == (row["task"] not in ("ocr", "chart"))
        assert (row["advantage"] != 0) == row["kept"]
    assert [row["record"] for row in result.completions] == [12 + n // 2 for n in range(16)]


def test_a_step_without_any_signal_learns_nothing(policy, tiny_run):
    config, progress = tiny_run(*SIGNAL), Progress()
    before = copy.deepcopy(policy.model.state_dict())
    result = one_step(policy, config, Judge(*config.data.tasks), progress)
    assert all(torch.equal(w, before[name]) for name, w in policy.model.state_dict().items())
    assert (progress.step, progress.position, progress.empty_steps) == (1, 24, 1)
    assert result.metrics["sampling/empty_steps"] == 1
    assert "loss/policy" not in result.metrics
    assert all(row["advantage"] == 0 for row in result.completions)


class Odd(Scorer):
    """Likes responses of an odd number of characters, so that some groups have no signal."""

    def __call__(self, records, texts, *, dtype=np.float32):
        rewards = np.asarray([len(text) % 2 for text in texts], dtype)
        return Rewards(*[rewards] * 4)


def test_a_resumed_run_goes_on_where_it_was(tiny_run, monkeypatch):
    monkeypatch.setattr(g2rpo_trainer.loop, "Scorer", Odd)
    settings = (*SIGNAL, "rollout.dynamic_sampling.max_tries=2", "data.eval_items=1")
    whole = tiny_run(*settings, folder="whole")
    train(whole)
    train(tiny_run(*settings, "optimization.steps=1", folder="parts"))
    parts = tiny_run(*settings, folder="parts")
    train(parts, resume=True)
    expected, found = metrics_of(whole), metrics_of(parts)
    assert found == expected
    assert any(line["sampling/dropped"] for line in expected)


def metrics_of(config):
    lines = (Path(config.output.dir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{n: v for n, v in record.items() if "time" not in n} for record in records]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("rollout.limits={ocr: 9}", "limits.ocr is 9, but must be from 1 to rollout.max_compl"),
        ("rollout.batch_size=1", "batch_size 1 is less than num_generations 2"),
        ("rollout.dynamic_sampling.band=[0.5, 0.5]", r"is \[0.5, 0.5\], but must ascend"),
        ("rollout.dynamic_sampling.mode=always", "but must be 'off', 'signal' or 'accuracy'"),
    ],
)
def test_settings_that_make_no_sense(tiny_run, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(settings)
