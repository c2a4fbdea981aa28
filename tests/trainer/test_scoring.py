"""Rewards of a run: components, weights, one's own functions, and what fails."""

import json
import sys
from dataclasses import replace
from io import StringIO
from math import nan
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from g2rpo.rewards import RewardPool
from g2rpo_trainer import evaluate, train
from g2rpo_trainer.answers import Answers, Evaluation, evaluated
from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.record import Record
from g2rpo_trainer.report.display import Display
from g2rpo_trainer.scoring import Rewards, Scorer
from g2rpo_trainer.tasks import TASKS

from .conftest import scorer_of


@pytest.fixture(autouse=True)
def own_scores(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own_scores", None)


@pytest.fixture
def own_data(tmp_path):
    """Return a function that writes records of one problem type, and describes a run on them."""

    def describe(problem_type, *settings, answer="red", count=12):
        path = tmp_path / "own.jsonl"
        rows = []
        for index in range(count):
            image = TASKS["ocr"].item(5, index).record.images[0]
            image.save(tmp_path / f"{index}.png")
            rows.append({"problem": f"number {index}?", "images": [f"{index}.png"]})
        lines = [
            json.dumps({**row, "answer": answer, "problem_type": problem_type, "task_type": "t"})
            for row in rows
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
        return load_config(None, {"data.source": str(path)}, settings)

    return describe


BOX = Record("Where?", "[0, 0, 10, 10]", "spatial grounding", "t")
RED = Record("Which?", "red", "colour", "t")
HALF = '<think>a</think><answer>{"boxes": [0, 0, 10, 5]}</answer>'
LOOSE = "<think>a</think><answer>it is at [0, 0, 10, 10]</answer>"


def test_components_and_their_sum():
    with scorer_of(load_config()) as scorer:
        rewards = scorer([BOX], [HALF, LOOSE, "nothing"])
    assert rewards.accuracy.tolist() == [0.5, 1, 0]
    assert rewards.format.tolist() == [1, 1, 0]
    assert rewards.structure.tolist() == [1, 0, 0]
    # The built-in tasks ask for no shape beyond the format.
    assert rewards.reward.tolist() == pytest.approx([0.55, 1, 0])


def test_an_evaluation_has_no_noise_of_single_precision():
    with scorer_of(load_config()) as scorer:
        single = scorer([BOX], [HALF, LOOSE])
        double = scorer([BOX], [HALF, LOOSE], dtype=np.float64)
    assert {column.dtype for column in single.columns().values()} == {np.dtype(np.float32)}
    assert {column.dtype for column in double.columns().values()} == {np.dtype(np.float64)}
    lengths = np.asarray([7, 8])
    found = [
        evaluated({"t": [Answers(0, [BOX], [HALF, LOOSE], rewards, lengths, lengths > 0)]})
        for rewards in (single, double)
    ]
    assert json.dumps(found[1].reward) == '{"t": 0.775, "mean": 0.775}'
    assert found[1].detail["t"]["accuracy"] == 0.75
    assert found[0].reward["t"] != 0.775


def answered(rewards):
    """Return the evaluation of one task with two responses to each item."""
    rewards = np.asarray(rewards, np.float64)
    flat, items = rewards.ravel(), [RED] * len(rewards)
    columns = Rewards(flat, flat, np.ones_like(flat), np.zeros_like(flat))
    lengths = np.full(flat.shape, 7)
    return evaluated({"t": [Answers(0, items, ["red"] * len(flat), columns, lengths, lengths > 0)]})


def test_the_interval_of_a_change_is_over_the_differences_of_items():
    before = answered([[0, 0], [0, 1], [1, 1], [nan, nan]])
    after = answered([[0, 1], [1, 1], [1, nan], [0, 1]])
    low, high = after.change_since(before)["t"]
    # Of the three items with rewards in both: +.5, +.5, 0; Student's quantile for 2 degrees.
    half = 4.302653 * np.std([0.5, 0.5, 0], ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((1 / 3 - half, 1 / 3 + half), abs=1e-6)
    assert after.change_since(before)["mean"] == [low, high]
    own = [np.diff(each.interval["t"])[0] for each in (before, after)]
    assert high - low < np.hypot(*own)


def test_evaluations_of_other_items_have_no_interval_of_their_change():
    before, after = answered([[0, 1], [1, 1]]), answered([[0, 1], [1, 1], [1, 1]])
    assert np.isnan(after.change_since(before)["t"]).all()
    assert np.isnan(after.change_since(Evaluation({}, {}, {}))["mean"]).all()


def test_weights_are_the_papers_for_ones_own_data_and_can_be_changed(own_data):
    with scorer_of(own_data("spatial grounding", answer="[0, 0, 10, 10]")) as scorer:
        assert scorer([BOX], [HALF]).reward.tolist() == pytest.approx([0.45 + 0.1 + 0.5])
    weights = "rewards.weights={accuracy: 1, format: 0, structure: 0.25}"
    with scorer_of(load_config(settings=[weights])) as scorer:
        assert scorer([BOX], [HALF]).reward.tolist() == pytest.approx([0.75])


@pytest.mark.parametrize(
    ("problem_type", "settings", "workers"),
    [
        ("numerical", (), 0),
        ("maths", (), None),
        ("maths", ("rewards.workers=0",), 0),
        ("numerical", ("rewards.workers=2",), 2),
        ("colour", ("rewards.functions.colour=own_scores:length_of",), None),
        ("numerical", ("rewards.functions.numerical=own_scores:length_of",), None),
    ],
)
def test_processes_start_only_where_scoring_can_take_long(
    own_data, monkeypatch, problem_type, settings, workers
):
    seen = []

    class Pool(RewardPool):
        def __init__(self, workers, **options):
            seen.append(workers)
            super().__init__(0, **options)

    monkeypatch.setattr("g2rpo_trainer.scoring.RewardPool", Pool)
    with scorer_of(own_data(problem_type, *settings, answer="1")):
        assert seen == [workers]


@pytest.mark.parametrize("run", ["train", "evaluate"])
def test_a_reward_that_no_record_asks_for_is_told(run, tiny_run):
    def told(problem_type):
        config = tiny_run(
            "data.tasks=[ocr]",
            "optimization.steps=1",
            "rewards.workers=0",
            "length.targets={}",
            f"rewards.functions={{{problem_type}: 'own_scores:length_of'}}",
            folder=problem_type,
        )
        written = StringIO()
        with Display(1, ["ocr"], console=Console(file=written, width=80), quiet=True) as display:
            if run == "train":
                train(config, display=display)
            else:
                evaluate(config.model.name, config, display)
        return written.getvalue()

    said = "no record has problem type 'character OCT'; did you mean 'character OCR'?"
    assert told("character OCT").count(said) == 1
    assert "is not used" not in told("Character  ocr")


def test_an_answer_without_end_costs_its_own_reward_and_is_counted(own_data):
    config = own_data(
        "colour",
        "rewards.functions.colour=own_scores:hangs",
        "rewards.workers=1",
        "rewards.timeout=0.5",
    )
    texts = [f"<think></think><answer>{answer}</answer>" for answer in ("a", "hang", "b")]
    with scorer_of(config) as scorer:
        assert scorer([RED], texts).accuracy.tolist() == [1, 0, 1]
        expected = {"rewards/timeouts": 1, "rewards/crashes": 0, "rewards/errors": 0}
        assert scorer.metrics() == expected
        assert scorer.metrics() == dict.fromkeys(expected, 0)
        assert scorer.counts == {"timeout": 1}


def test_a_reward_of_ones_own_trains(own_data, tmp_path, random_policy_folder):
    """A run of two steps, scored by a function that the configuration names by its import path."""
    settings = [
        f"model.name={random_policy_folder}",
        "rewards.functions.colour=own_scores:length_of",
        "rewards.workers=0",
        *TINY,
    ]
    summary = train(own_data("colour", *settings, f"output.dir={tmp_path / 'run'}"))
    assert summary["steps"] == 2
    assert set(summary["after"]) == {"t", "mean"}


TINY = (
    "data.eval_items=2",
    "data.eval_generations=1",
    "rollout.prompts_per_step=2",
    "rollout.num_generations=2",
    "rollout.max_completion_length=8",
    "optimization.steps=2",
    "output.trackers=[]",
    "output.plots=false",
)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "raised KeyError: 'no such colour'"),
        ("not_a_number", "returned nan; it must return a finite number"),
        ("text", "returned 'good'; it must return a finite number"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_fails_names_file_line_and_the_way_out(own_data, function, reason, workers):
    config = own_data(
        "colour",
        f"rewards.functions.colour=own_scores:{function}",
        f"rewards.workers={workers}",
    )
    record = replace(RED, place="a.jsonl, line 7")
    texts = ["<think></think><answer>a</answer>", "no answer"]
    with scorer_of(config) as scorer, pytest.raises(RunError) as raised:
        scorer([record], texts)
    text = str(raised.value)
    assert text.startswith("a.jsonl, line 7: reward function own_scores:")
    assert reason in text
    assert "rewards.skip_errors: true" in text


def test_a_reward_that_fails_says_which_drawn_record_it_was_given():
    config = load_config(
        settings=[
            "data.tasks=[maths]",
            "seed=4",
            "rewards.functions.numerical=own_scores:raises",
            "rewards.workers=0",
        ]
    )
    source = open_run(config)
    (drawn,) = source.training_records(seed=4, position=12, prompts=1)
    held = source.held_out_records("maths", 3)[2]
    bare = TASKS["maths"].item(4, 12).record
    texts = ["<think></think><answer>3</answer>"]
    expected = ("maths, item 12 of seed 4", "maths, held-out item 2", "record of task 'maths'")
    with Scorer(config.rewards, config.data, source) as scorer:
        for record, place in zip((drawn, held, bare), expected, strict=True):
            with pytest.raises(RunError) as raised:
                scorer([record], texts)
            assert str(raised.value).startswith(f"{place}: reward function own_scores:")


def test_errors_are_skipped_and_counted_only_if_that_is_allowed(own_data):
    config = own_data(
        "colour",
        "rewards.functions.colour=own_scores:raises",
        "rewards.workers=0",
        "rewards.skip_errors=true",
    )
    with scorer_of(config) as scorer:
        rewards = scorer([RED], ["<think></think><answer>a</answer>", "no answer"])
        assert scorer.metrics()["rewards/errors"] == 1
    assert np.isnan(rewards.reward).tolist() == [True, False]
    assert rewards.format.tolist() == [1, 0]


def test_a_run_whose_rewards_all_fail_goes_on_without_a_signal(
    own_data, tmp_path, random_policy_folder
):
    settings = [
        f"model.name={random_policy_folder}",
        "rewards.functions.colour=own_scores:raises",
        "rewards.workers=0",
        "rewards.skip_errors=true",
        *TINY,
    ]
    folder = tmp_path / "run"
    train(own_data("colour", *settings, f"output.dir={folder}"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/policy"] == 0 for line in lines)


def test_an_import_path_that_leads_nowhere_is_found_before_anything_is_written(own_data, tmp_path):
    folder = tmp_path / "run"
    config = own_data("colour", "rewards.functions.colour=own_scores:raise", f"output.dir={folder}")
    with pytest.raises(RunError, match=r"rewards\.functions: .*did you mean 'raises'"):
        train(config)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("problem_type", "answer", "reason"),
    [
        ("colour", "red", "problem_type is 'colour'; it must be one of"),
        ("numercial", "3", "did you mean 'numerical'"),
        ("numerical", "three", "truth is 'three'; it must be a finite number"),
    ],
)
def test_records_that_cannot_be_scored_are_found_before_training(
    own_data, tmp_path, problem_type, answer, reason
):
    with pytest.raises(RunError) as raised:
        open_run(own_data(problem_type, answer=answer))
    text = str(raised.value)
    assert "12 of 12 records cannot be used" in text
    assert f"{tmp_path / 'own.jsonl'}, line 1: " in text
    assert reason in text


def test_a_broken_record_is_skipped_and_counted_only_if_that_is_allowed(own_data, tmp_path):
    config = own_data("numerical", answer="3")
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write('\n{"problem": "?", "answer": "many", "problem_type": "numerical"}\n')
    with pytest.raises(RunError, match=r"own.jsonl, line 13: .*'many'.*finite number"):
        open_run(config)
    allowed = load_config(None, {"data.source": config.data.source}, ["data.skip_broken=true"])
    assert open_run(allowed).summary().skipped == 1


def test_the_same_data_are_checked_again_with_other_functions(own_data):
    known = own_data("colour", "rewards.functions.colour=own_scores:length_of")
    assert open_run(known).tasks == ("t",)
    with pytest.raises(RunError, match="'colour'"):
        open_run(load_config(None, {"data.source": known.data.source}))


@pytest.mark.parametrize(
    "setting",
    [
        "length.targets.tt=direct",
        "entropy.bounds.tt=[0, 1]",
        "entropy.weights.tt=1",
        "rollout.limits.tt=9",
    ],
)
def test_shaping_of_a_task_that_the_source_lacks_is_refused(own_data, setting):
    key = setting.partition(".tt")[0]
    with pytest.raises(RunError, match=rf"{key}: unknown task 'tt'.*did you mean 't'"):
        open_run(own_data("numerical", setting, answer="3"))
