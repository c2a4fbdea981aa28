"""How long prompts may be, found out before the first step."""

from __future__ import annotations

import json

import pytest

from g2rpo.run import RunError, load_description
from g2rpo.run.records import source_of, with_tasks
from g2rpo.run.supported import refuse_unsupported
from g2rpo_tunix.engine.options import SUPPORTED
from g2rpo_tunix.engine.policy import Policy
from g2rpo_tunix.engine.prompts import longest_prompt


class Characters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text, **_):
        return [ord(character) for character in text]


def policy(context=None):
    return Policy(model=None, tokenizer=Characters(), context=context)


@pytest.fixture
def described(tmp_path):
    """Return a function that describes a run on 20 records, of which the seventh is too long."""
    rows = [{"problem": f"{n:02} plus 1?", "answer": n + 1, "task_type": "plus"} for n in range(20)]
    rows[6]["problem"] = "word " * 4000
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def described(**changes):
        values = {
            "engine": "tunix",
            "data.source": str(path),
            "data.problem_type": "numerical",
            "data.eval_items": 2,
            "length.targets": {},
            "rollout.prompts_per_step": 20,
            "rollout.max_completion_length": 40,
        }
        description = with_tasks(load_description(overrides=values | changes))
        refuse_unsupported(description, SUPPORTED)
        return description

    return described


@pytest.mark.parametrize(
    ("limit", "context", "allowed"),
    [(None, None, 1024), (None, 400, 360), (30, 400, 30), (30, None, 30), (500, 400, 500)],
)
def test_a_prompt_that_is_too_long_is_told_with_its_line(described, limit, context, allowed):
    description = described(**{"rollout.max_prompt_length": limit})
    wanted = rf"own\.jsonl, line 7: its prompt has 19999 tokens, but at most {allowed} are allowed"
    with pytest.raises(RunError, match=wanted):
        longest_prompt(description, policy(context), steps=1)


def test_it_is_left_out_where_the_run_says_so(described):
    description = described(**{"data.skip_broken": True})
    # 11 tokens, rounded up.
    assert longest_prompt(description, policy(), steps=1) == 16
    (left_out,) = source_of(description.data).summary().examples
    assert "line 7: its prompt has 19999 tokens" in left_out


def test_what_is_long_fits_where_the_limit_allows_it(described):
    description = described(**{"rollout.max_prompt_length": 20_000})
    assert longest_prompt(description, policy(), steps=1) == 20_000


def test_a_response_leaves_room_for_a_prompt(described):
    wanted = r"rollout\.max_completion_length is 40, but the model's context has 40 tokens"
    with pytest.raises(RunError, match=wanted):
        longest_prompt(described(), policy(context=40), steps=1)
