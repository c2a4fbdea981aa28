"""Questions and answers of the built-in text tasks agree."""

import re

from g2rpo.rewards.boxes import box_iou
from g2rpo_trainer.tasks import LEVELS, TEXT_TASKS


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
