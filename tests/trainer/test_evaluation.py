"""Held-out rewards: means with intervals, the best of several, samples, greedy answers."""

import json
import math

import numpy as np
import pytest
import torch

from g2rpo_trainer import evaluate, train
from g2rpo_trainer.data import open_run
from g2rpo_trainer.evaluation import Evaluator
from g2rpo_trainer.scoring import Rewards, Scorer

from .parts import evaluator_of


class Graded:
    """Scores the k-th response to the i-th item as k + i / 10, for arithmetic in the head."""

    def __call__(self, records, texts, *, dtype=np.float32):
        each = len(texts) // len(records)
        reward = np.asarray([row % each + row // each / 10 for row in range(len(texts))], dtype)
        return Rewards(reward, reward / 2, np.ones_like(reward), np.zeros_like(reward))


@pytest.fixture
def config(tiny_run):
    return tiny_run("data.tasks=[ocr, maths]", "data.eval_items=3", "data.eval_generations=3")


def test_means_intervals_and_bests(random_policy, config):
    evaluation = evaluator_of(config, Graded()).evaluate(random_policy)
    ocr = evaluation.detail["ocr"]
    # Items have the means 1, 1.1 and 1.2, and Student's quantile for two degrees is 4.303.
    # No closer in single precision than 1e-8, and then JSON would hold many digits of noise.
    assert evaluation.reward["ocr"] == pytest.approx(1.1, rel=1e-14)
    assert ocr["high"] - ocr["low"] == pytest.approx(2 * 4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert ocr["low"] < 1.1 < ocr["high"]
    assert (ocr["items"], ocr["generations"]) == (3, 3)
    assert ocr["best_of"] == pytest.approx({"1": 1.1, "2": 5 / 3 + 0.1, "3": 2.1}, rel=1e-5)
    assert ocr["best"] == pytest.approx(2.1)
    assert (ocr["accuracy"], ocr["format"], ocr["structure"]) == pytest.approx((0.55, 1, 0))
    mean = evaluation.detail["mean"]
    assert evaluation.reward["mean"] == pytest.approx(1.1)
    assert (mean["items"], mean["best"]) == (6, pytest.approx(2.1))
    assert mean["high"] - mean["low"] < ocr["high"] - ocr["low"]


def test_every_response_is_handed_over_once(random_policy, config):
    samples, batches = [], []

    def keep(batch):
        batches.append(len(batch))
        samples.extend(batch)

    small = config.model_copy(
        update={"data": config.data.model_copy(update={"eval_batch_size": 2})}
    )
    evaluation = evaluator_of(small, Graded()).evaluate(random_policy, on_samples=keep)
    assert batches == [6, 3, 6, 3]
    assert [(each["task"], each["item"]) for each in samples[::3]] == [
        (task, item) for task in ("ocr", "maths") for item in range(3)
    ]
    of_ocr = [each["reward"] for each in samples if each["task"] == "ocr"]
    assert sum(of_ocr) / 9 == pytest.approx(evaluation.reward["ocr"])
    keys = {"problem", "answer", "response", "reward", "accuracy", "length", "ended"}
    assert keys <= set(samples[0])
    json.dumps(samples, allow_nan=False)


def test_a_temperature_of_0_takes_the_likeliest_tokens(random_policy, config):
    def responses(temperature):
        texts = []
        data = config.data.model_copy(update={"eval_temperature": temperature})
        cold = config.model_copy(update={"data": data})
        evaluator_of(cold, Graded()).evaluate(random_policy, on_samples=texts.extend)
        return [each["response"] for each in texts]

    greedy, drawn = responses(0.0), responses(None)
    assert all(len(set(greedy[start : start + 3])) == 1 for start in range(0, 18, 3))
    assert any(len(set(drawn[start : start + 3])) > 1 for start in range(0, 18, 3))


def test_evaluation_leaves_the_random_numbers_alone(random_policy, config):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = evaluator_of(config, Graded()).evaluate(random_policy)
    assert torch.equal(torch.rand(3), expected)
    assert evaluator_of(config, Graded()).evaluate(random_policy) == first


@pytest.fixture
def few(tmp_path, tiny_run):
    """Two tasks of stored records, of which one has a single held-out record."""
    from g2rpo_trainer.tasks import TASKS

    rows = []
    for index in range(24):
        record = TASKS["ocr"].item(5, index).record
        record.images[0].save(tmp_path / f"{index}.png")
        name = "rare" if index < 3 else "common"
        rows.append({**record.as_row(), "images": [f"{index}.png"], "task_type": name})
    path = tmp_path / "own.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return tiny_run(
        f"data={json.dumps({'source': str(path)})}",
        "data.eval_items=500",
        "data.eval_fraction=0.3",
        "length.targets={}",
    )


def test_a_task_with_few_records_is_reported_with_their_number(few):
    result = evaluate(few.model.name, few)
    sizes = open_run(few).summary().tasks
    rare, common = sizes["rare"].held_out, sizes["common"].held_out
    assert rare == 1 < common < 21
    items = {task: detail["items"] for task, detail in result["detail"].items()}
    assert items == {"rare": rare, "common": common, "mean": rare + common}
    assert math.isnan(result["detail"]["rare"]["low"])


def test_a_task_without_held_out_records_is_no_number_and_in_no_mean(
    few, random_policy, monkeypatch
):
    source = open_run(few)
    held_out = source.held_out
    monkeypatch.setattr(
        source, "held_out", lambda task, *_: iter(()) if task == "rare" else held_out(task, *_)
    )
    with Scorer(few.rewards, few.data, source) as scorer:
        result = Evaluator(source, scorer, few.data, few.rollout).evaluate(random_policy)
    assert math.isnan(result.reward["rare"])
    assert math.isnan(result.length["rare"])
    assert result.detail["rare"]["items"] == 0
    assert result.reward["mean"] == result.reward["common"]


def test_a_run_logs_means_and_intervals_at_its_evaluations(tiny_run, tmp_path):
    train(tiny_run("output.eval_steps=2", "data.eval_items=3", "output.plots=false"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second, _ = (json.loads(line) for line in lines)
    names = {f"eval_reward{end}{of}" for end in ("", "_low", "_high") for of in ("", "/ocr")}
    assert names <= set(second)
    assert not names & set(first)
    assert second["eval_reward_low"] <= second["eval_reward"] <= second["eval_reward_high"]
