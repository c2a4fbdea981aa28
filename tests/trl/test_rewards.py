"""The built-in rewards as TRL calls them: lists of completions, columns of the data set."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import g2rpo_trl.rewards as builtin
from g2rpo.rewards import components
from g2rpo_trl.rewards import RecordRewards

from .tiny import logs, rows, trainer

TEXTS = [
    "<think>six sevens</think><answer>42</answer>",
    "<answer>41</answer>",
    "<think>left</think><answer>[0,0,10,5]</answer>",
    "forty-two",
]
COLUMNS = {
    "problem_type": ["maths", "numerical", "spatial grounding", "maths"],
    "answer": ["42", "42", "[0,0,10,10]", "42"],
    "task_type": ["a", "a", "b", "a"],
}
NAMES = ("accuracy", "format", "structure")


def columns(name):
    rows = zip(*(COLUMNS[key] for key in ("problem_type", "answer")), strict=True)
    records = [{"problem_type": kind, "answer": answer} for kind, answer in rows]
    return [getattr(components(r, t), name) for r, t in zip(records, TEXTS, strict=True)]


@pytest.mark.parametrize("conversational", [False, True])
def test_values_are_those_of_the_components(conversational):
    completions = (
        [[{"role": "assistant", "content": t}] for t in TEXTS] if conversational else TEXTS
    )
    for name in NAMES:
        function = getattr(builtin, name)
        assert function.__name__ == name
        assert function(prompts=[""] * 4, completions=completions, **COLUMNS) == columns(name)


def test_processes_are_of_their_own_and_have_a_time_limit(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    logged = {}
    rewards = RecordRewards(workers=1, timeout=0.5, functions={"slow": "own_rewards:endless"})
    try:
        found = rewards.accuracy(
            completions=["<answer>1</answer>", "<answer>42</answer>"],
            problem_type=["slow", "maths"],
            answer=["1", "42"],
            log_metric=logged.__setitem__,
        )
    finally:
        rewards.close()
    assert found == [0.0, 1.0]
    assert logged == {"rewards/timeouts": 1.0, "rewards/crashes": 0.0, "rewards/errors": 0.0}


def test_a_batch_is_scored_once():
    calls = []

    def counted(answer, truth):
        calls.append(answer)
        return 1.0

    rewards = RecordRewards(workers=0, functions={"own": counted})
    batch = ["<answer>1</answer>"]
    for name in NAMES:
        getattr(rewards, name)(completions=batch, problem_type=["own"], answer=["1"])
    assert calls == ["1"]
    rewards.accuracy(completions=["<answer>2</answer>"], problem_type=["own"], answer=["1"])
    assert calls == ["1", "2"]


def test_rows_without_a_problem_type_and_failed_functions_have_no_reward():
    def fails(answer, truth):
        raise ZeroDivisionError

    rewards = RecordRewards(workers=0, functions={"own": fails}, skip_errors=True)
    found = rewards.accuracy(
        completions=["<answer>7</answer>"] * 3,
        problem_type=[None, "own", "numerical"],
        answer=[None, "1", "7"],
    )
    assert found == [None, None, 1.0]


def test_parts_and_thoughts_of_messages_are_text():
    parts = [{"type": "text", "text": "<answer>"}, {"type": "text", "text": "7</answer>"}]
    messages = [
        [{"role": "assistant", "content": parts}],
        [{"role": "assistant", "reasoning_content": "odd", "content": "<answer>7</answer>"}],
        [
            {"role": "assistant", "content": "<think>ask</think>", "tool_calls": []},
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "<answer>7</answer>"},
        ],
    ]
    given = {"problem_type": ["numerical"] * 3, "answer": ["7"] * 3}
    rewards = RecordRewards(workers=0)
    assert rewards.accuracy(completions=messages, **given) == [1, 1, 1]
    assert rewards.format(completions=messages, **given) == [0, 1, 1]


def test_missing_columns_are_named():
    with pytest.raises(
        ValueError, match="columns problem_type and answer, but has no answer; rename"
    ):
        builtin.accuracy(completions=[""], problem_type=["maths"])


def test_they_train(tmp_path):
    rewards = RecordRewards(workers=0)
    made = trainer(
        tmp_path,
        reward_funcs=[rewards.accuracy, rewards.format, rewards.structure],
        reward_weights=[0.9, 0.1, 0.5],
        length_only_right="accuracy",
        length_targets={"tail": "direct"},
        train_dataset=rows(problem_type="numerical", answer="7"),
    )
    made.train()
    entry = logs(made)[0]
    assert entry["rewards/accuracy/mean"] == 0
    assert entry["rewards/timeouts"] == 0
    assert entry["frac_reward_zero_std"] == 1
