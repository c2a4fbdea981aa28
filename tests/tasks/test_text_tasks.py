"""The built-in text tasks: deterministic, solvable, apart on both sides of the split."""

import re

import numpy as np
import pytest

from g2rpo.rewards import ACCURACY, score
from g2rpo.rewards.boxes import box_iou
from g2rpo_trainer.config import BUILTIN_SOURCES
from g2rpo_trainer.tasks import LEVELS, SPLITS, TASKS, TASKS_BY_SOURCE, TEXT_TASKS

COLUMNS = {"problem", "images", "answer", "problem_type", "data_type", "task_type", "options"}
ALL = pytest.mark.parametrize("name", list(TEXT_TASKS))


def test_the_description_knows_the_tasks_of_every_source():
    assert {source: tuple(tasks) for source, tasks in TASKS_BY_SOURCE.items()} == BUILTIN_SOURCES
    assert not set(TASKS) & set(TEXT_TASKS)


@ALL
@pytest.mark.parametrize("level", LEVELS)
def test_an_item_follows_from_its_seed(name, level):
    first, again, other = (TEXT_TASKS[name].item(seed, 5, level=level) for seed in (3, 3, 4))
    assert first == again
    assert first.scene != other.scene


@ALL
def test_train_and_heldout_are_apart(name):
    task = TEXT_TASKS[name]
    train, heldout = (
        {task.item(seed, index, split=split).scene for seed in range(2) for index in range(300)}
        for split in SPLITS
    )
    assert not train & heldout
    rng = np.random.default_rng(0)
    scenes = {task.scene(rng, int(rng.choice(LEVELS))) for _ in range(4000)}
    share = np.mean([task.split_of(scene) == "heldout" for scene in scenes])
    assert share == pytest.approx(1 / 8, abs=0.03)


@ALL
def test_the_right_answer_scores_one_and_records_are_text(name):
    for index in range(50):
        item = TEXT_TASKS[name].item(1, index)
        record = item.record
        response = f"<think>{item.worked}</think><answer>{record.answer}</answer>"
        assert score(record.as_row(), response).reward == pytest.approx(1.0)
        assert set(record.as_row()) == COLUMNS
        assert record.problem_type in ACCURACY
        assert (record.task, record.as_row()["data_type"]) == (name, "text")
        assert record.images == []


def test_arithmetic_asks_what_it_answers():
    for index in range(60):
        item = TEXT_TASKS["arithmetic"].item(0, index)
        a, operator, b = re.fullmatch(r"What is (\d+)([+-])(\d+)\?", item.record.problem).groups()
        assert int(item.record.answer) == int(a) + int(operator + b)
        assert item.worked.endswith(f"={item.record.answer}")


def test_the_box_is_that_of_the_shape_that_is_asked_for():
    places = set()
    for index in range(60):
        item = TEXT_TASKS["box"].item(0, index)
        shapes = {
            name: tuple(map(int, numbers))
            for name, *numbers in re.findall(
                r"(\w+ \w+) at (\d+),(\d+) size (\d+)", item.record.problem
            )
        }
        asked = re.search(r"box of the (\w+ \w+) as", item.record.problem)[1]
        x, y, size = shapes[asked]
        answer = f"[{x},{y},{x + size},{y + size}]"
        assert box_iou(answer, item.record.answer) == 1
        assert item.worked == f"{x}+{size}={x + size},{y}+{size}={y + size}"
        places.add(list(shapes).index(asked))
    assert places == {0, 1, 2}


def test_bars_differ_by_the_answer_which_is_above_zero():
    for index in range(60):
        item = TEXT_TASKS["bars"].item(0, index)
        values = [int(value) for value in re.findall(r"\w+ (\d+)", item.record.problem)]
        assert int(item.record.answer) == max(values) - min(values) > 0


def test_sorting_gives_the_same_letters_in_order():
    for index in range(60):
        item = TEXT_TASKS["sorting"].item(0, index)
        given = item.record.problem.removeprefix("Sort the letters: ")
        assert item.record.answer == "".join(sorted(given))
        halves = item.worked.split(",")
        assert sorted("".join(halves)) == sorted(given)
        assert all(list(half) == sorted(half) for half in halves)


def test_levels_are_harder_in_what_they_hold():
    lengths = [len(TEXT_TASKS["sorting"].item(0, 0, level=level).scene.letters) for level in LEVELS]
    bars = [len(TEXT_TASKS["bars"].item(0, 0, level=level).scene.values) for level in LEVELS]
    assert lengths == [7, 10, 13]
    assert bars == [3, 4, 5]
