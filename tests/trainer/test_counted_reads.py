"""A record is read and tokenised once, by the rank that samples responses to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.distributed import Ranks
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.metrics import Stopwatch
from g2rpo_trainer.prompts.encoding import Prompt
from g2rpo_trainer.scoring import Rewards

from . import counted_reads
from .launched import run_worker
from .parts import collector_of

WORKER = Path(counted_reads.__file__)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty records, of which every third is too long."""
    rows = [
        {
            "problem": f"What is {n} + 1?" + " Really?" * (20 if n % 3 == 0 else 0),
            "answer": str(n + 1),
            "problem_type": "numerical",
            "task_type": "sums",
        }
        for n in range(60)
    ]
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def alone(data):
    config = load_config(settings=[f"data.source={data}", *counted_reads.SETTINGS])
    return counted_reads.count(config, Ranks())


def test_each_record_is_tokenised_once_whether_it_is_broken_or_not(alone):
    (own,) = alone["ranks"]
    assert alone["skipped"] > 0
    used = [text for text in own["step"] if "Really" not in text]
    assert len(used) == len(alone["problems"]) == 7
    assert all(problem in text for text, problem in zip(used, alone["problems"], strict=True))
    # Four held-out items, and the broken ones before them.
    assert len(own["evaluation"]) == len(set(own["evaluation"]))
    assert sum("Really" not in text for text in own["evaluation"]) == 4


def test_broken_records_are_passed_over_by_the_pass_that_encodes(data):
    policy, texts = counted_reads.counting_policy()
    source = open_run(load_config(settings=[f"data.source={data}", *counted_reads.SETTINGS]))
    tried = []
    for slot in source.slots(seed=0, position=0, prompts=20):
        texts.clear()
        prompt = source.read(slot, lambda record: Prompt.encoded(policy, record))
        *broken, last = texts
        assert last == prompt.chat.text
        assert all("Really" in text for text in broken)
        assert len(set(texts)) == len(texts)
        tried.append(len(texts))
    assert min(tried) == 1 < max(tried)


@pytest.mark.slow
def test_ranks_tokenise_only_their_own_records(alone, data, tmp_path):
    run_worker(WORKER, data, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    together = [text for own in found["ranks"] for text in own["step"]]
    assert sorted(together) == sorted(alone["ranks"][0]["step"])
    assert {sum("Really" not in text for text in own["step"]) for own in found["ranks"]} == {3, 4}
    # As in a single process: the records, the responses to them, and what is left out.
    same = ("problems", "texts", "skipped", "evaluation")
    assert {name: found[name] for name in same} == json.loads(
        json.dumps({name: alone[name] for name in same})
    )


class Picky:
    """Gives signal to prompts of two tasks only, so that others are drawn in their place."""

    def __call__(self, records, texts):
        each = len(texts) // max(len(records), 1)
        values = [
            float(number % 2 and record.task in ("arithmetic", "box"))
            for record in records
            for number in range(each)
        ]
        return Rewards(*[np.asarray(values, np.float32)] * 4)


def test_prompts_of_several_tries_are_put_together_without_tokenising_again():
    policy, texts = counted_reads.counting_policy(longest=400)
    config = load_config(
        settings=[
            "data.source=builtin-text",
            "length.targets={}",
            "rollout.prompts_per_step=4",
            "rollout.num_generations=2",
            "rollout.max_completion_length=4",
            "rollout.dynamic_sampling.mode=signal",
        ]
    )
    torch.manual_seed(0)
    drawn = collector_of(policy, config, Picky()).collect(0, Stopwatch())
    assert drawn.tries > 1
    assert len(drawn.prompts["input_ids"]) == drawn.keeps.sum() == 4
    assert len(texts) == len(drawn.problems) > 4


def test_a_record_that_may_not_be_left_out_is_named_with_the_remedy(data):
    policy, _ = counted_reads.counting_policy()
    settings = [f"data.source={data}", *counted_reads.SETTINGS, "data.skip_broken=false"]
    config = load_config(settings=settings)
    collector = collector_of(policy, config, Picky(), source=open_run(config))
    with pytest.raises(RunError, match=r"own\.jsonl, line \d+: its prompt has .*skip_broken: true"):
        collector.collect(0, Stopwatch())
