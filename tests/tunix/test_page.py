"""The code of docs/tunix.md runs as it stands, given a cluster and reward functions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from tunix.rl.function_registry import get_advantage_estimator, get_reward_manager

from g2rpo_tunix import AgenticG2RPOLearner, G2RPOLearner

from .conftest import Letters, make_cluster

PAGE = Path(__file__).parents[2] / "docs" / "tunix.md"


class Bytes(Letters):
    """Takes any text: its characters, folded onto the few letters that there are."""

    def encode(self, text, **_):
        return [3 + ord(character) % 16 for character in text]


def accuracy(prompts, completions, **_):
    return [float("a" in text) for text in completions]


def layout(prompts, completions, **_):
    return [float(len(text) % 2) for text in completions]


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code, **names):
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_learner_trains():
    cluster = make_cluster(steps=1, tokenizer=Bytes(), mini_batch_size=2, prompt=16)
    names = run(blocks()[0], cluster=cluster, accuracy=accuracy, layout=layout)
    assert isinstance(names["learner"], G2RPOLearner)
    assert cluster.actor_trainer.train_steps == 1
    assert sum(line.strip() != "" for line in blocks()[0].splitlines()) < 20


def test_the_registry_has_the_names():
    names = run(blocks()[1])
    config = names["config"]
    assert get_reward_manager(config.reward_manager).__name__ == "TaskRewardManager"
    estimate = get_advantage_estimator(config.advantage_estimator)
    assert estimate(rewards=np.asarray([0.0, 1.0]), num_generations=2).tolist() == [-1.0, 1.0]


def test_the_agentic_learner_is_made():
    cluster = make_cluster(logprobs=True, tokens=1024)
    names = run(blocks()[2], cluster=cluster, accuracy=accuracy)
    assert isinstance(names["learner"], AgenticG2RPOLearner)
