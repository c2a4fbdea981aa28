"""Which records can be asked, and what is said of those that cannot."""

import json
from dataclasses import replace

import pytest

from g2rpo.run.errors import RunError
from g2rpo.run.records import heldout_records, source_of, training_records
from g2rpo.tasks import TEXT_TASKS
from g2rpo_jax.policy.questions import MAX_PROMPT_LENGTH
from g2rpo_jax.trainer import train
from g2rpo_jax.trainer.loading import load_described
from g2rpo_jax.trainer.prompts import encode_prompts, prompt_fault

LONG = " ".join(["word"] * 4000)


@pytest.fixture
def own(tiny_run, tmp_path):
    """Return a function that describes a run on 20 records, of which the seventh is too long."""
    rows = [{"problem": f"{n} plus 1?", "answer": n + 1, "task_type": "plus"} for n in range(20)]
    rows[6]["problem"] = LONG
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def describe(*settings: str):
        return tiny_run(
            f"data.source={path}",
            "data.tasks=[plus]",
            "data.problem_type=numerical",
            "length.mode=off",
            "rollout.prompts_per_step=20",
            "optimization.steps=1",
            *settings,
        )

    return describe


def test_the_built_in_prompts_are_far_shorter_than_the_limit(policy):
    for task in TEXT_TASKS.values():
        lengths = [
            len(policy.tokenizer.encode_prompt(task.item(0, number).record["problem"]))
            for number in range(200)
        ]
        assert max(lengths) < 64 < MAX_PROMPT_LENGTH


def test_a_prompt_may_have_the_limit_and_no_more(policy, records):
    record = records[0]
    length = len(policy.tokenizer.encode_prompt(record["problem"]))
    exact, less = (replace(policy, max_prompt_length=length - cut) for cut in (0, 1))
    assert prompt_fault(exact, record) is None
    assert int(encode_prompts(exact, [record]).mask.sum()) == length
    fault = prompt_fault(less, record)
    assert fault == (
        f"its prompt has {length} tokens, but at most {length - 1} are allowed "
        "(rollout.max_prompt_length); shorten it, or change the limit"
    )
    with pytest.raises(RunError, match=f"a record of task '{record['task_type']}': its prompt has"):
        encode_prompts(less, [record])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"images": ("an image",)}, "has images"), ({"messages": [{}]}, "has a conversation")],
)
def test_more_than_words_is_a_fault(policy, records, change, message):
    assert f"{message}, but the engine jax" in prompt_fault(policy, records[0] | change)


@pytest.mark.parametrize(("settings", "limit"), [([], 1024), (["rollout.max_prompt_length=9"], 9)])
def test_the_limit_is_the_runs_or_the_stated_one(tiny_run, settings, limit):
    assert load_described(tiny_run(*settings)).max_prompt_length == limit


def test_a_prompt_that_is_too_long_ends_the_run_with_its_line(own):
    with pytest.raises(RunError) as caught:
        train(own())
    assert "own.jsonl, line 7: its prompt has 20001 tokens" in str(caught.value)
    assert "at most 1024 are allowed (rollout.max_prompt_length)" in str(caught.value)
    assert str(caught.value).endswith("data.skip_broken: true leaves such records out")


def test_a_prompt_that_is_too_long_is_left_out_where_the_run_says_so(own):
    description = own("data.skip_broken=true")
    load_described(description)
    data = description.data
    drawn = training_records(data, seed=0, position=0, prompts=20) + heldout_records(data, "plus")
    assert len(drawn) == 22
    assert LONG not in {record["problem"] for record in drawn}
    (left_out,) = source_of(data).summary().examples
    assert "own.jsonl, line 7: its prompt has" in left_out
