"""The built-in tasks: deterministic, solvable, apart on both sides of the split."""

import numpy as np
import pytest

from g2rpo.rewards import ACCURACY, score
from g2rpo_trainer.config import BUILTIN_SOURCES
from g2rpo_trainer.tasks import LEVELS, SPLITS, TASKS, TASKS_BY_SOURCE, TEXT_TASKS

EVERY = {**TASKS, **TEXT_TASKS}
COLUMNS = {"problem", "images", "answer", "problem_type", "data_type", "task_type", "options"}
ALL = pytest.mark.parametrize("name", list(EVERY))
WITH_IMAGES = pytest.mark.parametrize("name", list(TASKS))


def test_the_configuration_knows_the_tasks_of_every_source():
    assert {source: tuple(tasks) for source, tasks in TASKS_BY_SOURCE.items()} == BUILTIN_SOURCES
    assert not set(TASKS) & set(TEXT_TASKS)


@ALL
@pytest.mark.parametrize("level", LEVELS)
def test_an_item_follows_from_its_seed(name, level):
    first, again, other = (EVERY[name].item(seed, 5, level=level) for seed in (3, 3, 4))
    assert first == again  # pictures are compared by their pixels
    assert first.scene != other.scene


@ALL
def test_an_item_does_not_depend_on_its_neighbours(name):
    stream = [EVERY[name].item(0, index).scene for index in range(5)]
    assert EVERY[name].item(0, 4).scene == stream[4]


@ALL
def test_train_and_heldout_are_apart(name):
    task = EVERY[name]
    train, heldout = (
        {task.item(seed, index, split=split).scene for seed in range(2) for index in range(300)}
        for split in SPLITS
    )
    assert not train & heldout
    assert all(task.split_of(scene) == "heldout" for scene in heldout)


@ALL
def test_an_eighth_is_held_out(name):
    task = EVERY[name]
    rng = np.random.default_rng(0)
    scenes = {task.scene(rng, int(rng.choice(LEVELS))) for _ in range(4000)}
    share = np.mean([task.split_of(scene) == "heldout" for scene in scenes])
    assert share == pytest.approx(1 / 8, abs=0.03)


@ALL
def test_the_right_answer_scores_one(name):
    for index in range(50):
        item = EVERY[name].item(1, index)
        response = f"<think>{item.worked}</think><answer>{item.record.answer}</answer>"
        assert score(item.record.as_row(), response).reward == pytest.approx(1.0)


@ALL
def test_records_have_the_papers_columns(name):
    for index in range(50):
        record = EVERY[name].item(1, index).record
        assert set(record.as_row()) == COLUMNS
        assert record.problem_type in ACCURACY
        assert record.task == name
        assert record.as_row()["data_type"] == ("image" if name in TASKS else "text")
        assert [image.mode for image in record.images] == ["RGB"] * (name in TASKS)


@WITH_IMAGES
def test_pictures_differ_where_scenes_do(name):
    items = [TASKS[name].item(0, index) for index in range(40)]
    pictures = {item.record.images[0].tobytes() for item in items}
    assert len(pictures) > 35


def test_grounding_asks_for_a_box_that_holds_the_shapes_colour():
    from g2rpo_trainer.tasks.canvas import COLOURS

    for index in range(20):
        item = TASKS["grounding"].item(0, index)
        shape = item.scene.shapes[0]
        pixels = np.asarray(item.record.images[0])
        ys, xs = np.nonzero((pixels == COLOURS[shape.colour]).all(-1))
        left, top, right, bottom = shape.box
        inside = (xs >= left) & (xs < right) & (ys >= top) & (ys < bottom)
        assert inside.sum() > 0.4 * shape.size**2


def test_spatial_options_are_shuffled_and_right():
    orders = set()
    for index in range(60):
        item = TASKS["spatial"].item(0, index)
        scene = item.scene
        dx, dy = scene.first.x - scene.second.x, scene.first.y - scene.second.y
        truth = {"left": -dx, "right": dx, "above": -dy, "below": dy}
        assert max(truth, key=truth.get) == scene.relation
        chosen = item.record.options["ABCD".index(item.record.answer)]
        assert chosen.endswith(scene.relation)
        orders.add(scene.order)
    assert len(orders) > 12


def test_counting_counts_what_is_drawn():
    for index in range(40):
        scene = TASKS["vqa"].item(0, index).scene
        asked = [s for s in scene.shapes if (s.colour, s.kind) == (scene.colour, scene.kind)]
        assert len(asked) == scene.count


def test_half_of_the_characters_are_handwritten():
    glyphs = [g for index in range(200) for g in TASKS["ocr"].item(0, index).scene.glyphs]
    assert np.mean([glyph.sample >= 0 for glyph in glyphs]) == pytest.approx(0.5, abs=0.08)


def test_worked_arithmetic_is_true():
    for index in range(60):
        item = TASKS["maths"].item(0, index)
        for step in item.worked.split(": ")[-1].split(","):
            left, right = step.split("=")
            assert _value(left) == int(right)
        assert item.worked.endswith(f"={item.record.answer}")


def _value(expression: str) -> int:
    """Add up a sum of signed integers."""
    return sum(int(part) for part in expression.replace("-", "+-").split("+") if part)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"level": 4}, "level is 4"), ({"split": "test"}, "split is 'test'")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TASKS["maths"].item(0, 0, **arguments)
