"""The script that makes the embedded policy."""

import numpy as np
import pytest
import torch

from g2rpo_trainer import cold_start
from g2rpo_trainer.cold_start import CLASSES, patch_labels
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.policy.build import build_model, build_processor
from g2rpo_trainer.tasks import TASKS


@pytest.fixture
def policy():
    processor = build_processor()
    return make_policy(build_model(processor.tokenizer, seed=0), processor)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_image_has_labels(name):
    for index in range(20):
        kinds, boxes = patch_labels(TASKS[name].item(0, index).scene)
        assert kinds.shape == (49,)
        assert boxes.shape == (49, 4)
        assert kinds.any()
        # A character's cell may reach a few pixels beyond the edge of the image.
        assert ((boxes >= 0) & (boxes <= 1 + 3 / 56)).all()
        assert (boxes[:, 0] < boxes[:, 2]).all()


def test_labels_lie_where_the_shape_is():
    for index in range(20):
        scene = TASKS["grounding"].item(0, index, level=1).scene
        (shape,) = scene.shapes
        kinds, boxes = patch_labels(scene)
        covered = kinds == CLASSES.index(shape.name)
        assert np.allclose(boxes[covered] * 56, shape.box)
        assert 4 <= covered.sum() <= 25


def test_glyph_labels_read_from_left_to_right():
    scene = TASKS["maths"].item(0, 0, level=3).scene
    kinds, _ = patch_labels(scene)
    row = kinds.reshape(7, 7)[3]
    assert "".join(CLASSES[kind] for kind in row) == scene.expression


def test_a_few_steps_learn(policy):
    items = cold_start.draw_items(seed=0, step=0)
    responses = [cold_start.response(item, thinks=True) for item in items]
    with torch.no_grad():
        before = cold_start.imitation_loss(policy, items, responses).item()
    cold_start.train_vision(policy, steps=2, seed=0)
    cold_start.train_language(policy, steps=2, seed=0)
    cold_start.train_policy(policy, steps=6, seed=0)
    with torch.no_grad():
        after = cold_start.imitation_loss(policy, items, responses).item()
    assert after < before - 1


def test_loss_ignores_padding_and_weighs_tasks_alike(policy):
    items = [TASKS[name].item(0, 0) for name in ("maths", "grounding")]
    texts = [cold_start.response(item, thinks=False) for item in items]
    both = cold_start.imitation_loss(policy, items, texts)
    alone = [
        cold_start.imitation_loss(policy, [item], [text])
        for item, text in zip(items, texts, strict=True)
    ]
    # A mean over all six tasks: those that are absent count nothing.
    assert both.item() == pytest.approx(sum(loss.item() for loss in alone), rel=1e-4)


def test_the_script_writes_a_policy(tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    phases = ("vision", "language", "policy", "habit")
    steps = [text for phase in phases for text in (f"--{phase}-steps", "1")]
    arguments = ["cold_start", "--output", str(folder), *steps]
    monkeypatch.setattr("sys.argv", arguments)
    cold_start.main()
    assert (folder / "model.safetensors").stat().st_size < 4_000_000
    load_policy(str(folder), device="cpu")


def test_no_thought_in_a_task_of_perception_begins_as_one_in_a_task_of_reasoning():
    def first_words(tasks):
        return {
            TASKS[task].item(0, number).worked.split()[0] for task in tasks for number in range(20)
        }

    reasoning = set(TASKS) - set(cold_start.PERCEPTION)
    assert first_words(cold_start.PERCEPTION).isdisjoint(first_words(reasoning))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_careless_response_is_that_to_another_item_of_the_task(monkeypatch, share):
    seen = []
    monkeypatch.setattr(cold_start, "imitation_loss", lambda *arguments: seen.append(arguments))
    steps = cold_start.styles(None, 0, dict.fromkeys(TASKS, 0.0), share)
    for step in range(20):
        steps(step)
    careless = []
    for _, items, responses in seen:
        for item, text in zip(items, responses, strict=True):
            others = [each for each in items if each.record.task == item.record.task]
            assert text in {cold_start.response(each, thinks=False) for each in others}
            careless.append(text != cold_start.response(item, thinks=False))
    # Another item may have the same answer, as two counts often do.
    assert (share > 0) * (share - 0.2) <= sum(careless) / len(careless) <= share
