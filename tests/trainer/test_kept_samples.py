"""What a run keeps for its report: some answers, small images, histograms, versions."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from g2rpo_trainer.config import load_config
from g2rpo_trainer.kept_samples import KeptSamples
from g2rpo_trainer.record import Record
from g2rpo_trainer.run_folder import RunFolder
from g2rpo_trainer.step_log import BIN_EDGES, advantage_counts


def sample(task, item, response="yes", **changed):
    values = {"problem": "?", "answer": "B", "reward": 0.5, "accuracy": 1.0, "length": 3}
    return {"task": task, "item": item, "response": response, "ended": True, **values, **changed}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", load_config(settings=["output.trackers=[]"]))


@pytest.mark.parametrize(("tasks", "items"), [(1, 4), (6, 4), (16, 4), (32, 2), (64, 1), (500, 1)])
def test_items_are_bounded_however_many_tasks_there_are(tasks, items):
    names = [f"task {number}" for number in range(tasks)]
    kept = KeptSamples(names)
    for task in names:
        kept.add([sample(task, item) for item in range(8) for _ in range(5)])
    rows = kept.rows()
    assert len(rows) == min(64, tasks) * items
    assert {len(row["responses"]) for row in rows} == {2}


def test_what_is_kept_is_small_whatever_the_run_says(folder):
    names = [f"task {number}" for number in range(64)]
    kept = KeptSamples(names)
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    record = Record("?", "B", "ocr", "x", [Image.fromarray(noise)] * 5)
    for task in names:
        kept.add([sample(task, 0, "a" * 10**5, problem="p" * 10**5, answer="b" * 10**5)] * 2)
        kept.add_images(task, [record])
    path = folder.write_samples("before", kept.rows())
    assert path.stat().st_size < 5_000_000
    assert {len(row["images"]) for row in folder.read_samples("before")} == {2}


def test_images_are_small_copies_and_those_of_the_record_stay():
    image = Image.new("RGBA", (600, 300), (200, 30, 30, 255))
    kept = KeptSamples(["ocr"])
    kept.add([sample("ocr", 0)])
    kept.add_images(
        "ocr", [Record("?", "B", "ocr", "ocr", [image]), Record("?", "B", "ocr", "ocr")]
    )
    (address,) = kept.rows()[0]["images"]
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (240, 120)
        assert small.getpixel((5, 5)) == (200, 30, 30)
    assert image.size == (600, 300)


def test_answers_of_any_kind_become_texts(folder):
    kept = KeptSamples(["ocr"])
    for item, answer in enumerate(["B", ["A", "B"], {"answer": "7", "metadata": {}}, 3.5]):
        kept.add([sample("ocr", item, answer=answer)])
    assert [row["answer"] for row in kept.rows()] == ["B", '["A", "B"]', "7", "3.5"]
    folder.write_samples("after", kept.rows())
    assert folder.read_samples("after") == kept.rows()
    assert folder.read_samples("before") == []


def rows_of(advantages, record=0, task="ocr", kept=True):
    return [
        {"task": task, "record": record, "prompt": "?", "advantage": value, "kept": kept}
        for value in advantages
    ]


def test_advantages_are_counted_where_a_prompt_has_signal():
    values = [-5.0, -1.0, 0.0, 0.1, 5.0]
    counts = advantage_counts(
        [*rows_of(values), *rows_of([0.0] * 4, record=1), *rows_of([1.0, -1.0], 2, kept=False)]
    )
    assert list(counts) == ["ocr"]
    assert sum(counts["ocr"]) == 5
    assert counts["ocr"][0] == counts["ocr"][-1] == 1
    inside, _ = np.histogram(values, BIN_EDGES)
    assert counts["ocr"][1:-1] == inside.tolist()
    assert counts["ocr"][len(BIN_EDGES) // 2] == 2  # a bin is centred on 0


def test_histograms_are_added_over_the_steps_and_cut_back_when_a_run_resumes(folder):
    for step in (1, 2, 3):
        folder.log(step, {"reward": 0.5}, rows_of([-1.0, 1.0]))
    assert sum(folder.read_advantages()["ocr"]) == 6
    folder.begin(1)
    assert sum(folder.read_advantages()["ocr"]) == 2
    folder.log(2, {"reward": 0.5}, rows_of([0.0, 0.0]))  # no signal: no line
    assert len(folder.advantages_path.read_text().splitlines()) == 1


def test_environments_are_noted_where_they_change(folder):
    one, other = {"torch": "2.12"}, {"torch": "2.13"}
    folder.note_environment(0, one)
    folder.note_environment(25, one)
    assert folder.read_environments() == [{"step": 0, **one}]
    folder.note_environment(25, other)
    folder.note_environment(50, other)
    assert folder.read_environments() == [{"step": 0, **one}, {"step": 25, **other}]
    folder.note_environment(20, one)  # the steps from there are done again
    assert folder.read_environments() == [{"step": 0, **one}]
    assert json.loads((folder.path / "environment.json").read_text())


def test_a_resumed_run_keeps_what_an_uninterrupted_one_does(tiny_run, tmp_path):
    from g2rpo_trainer import train

    train(tiny_run("output.trackers=[]", folder="whole"))
    train(tiny_run("output.trackers=[]", "optimization.steps=2", folder="parts"))
    train(tiny_run("output.trackers=[]", folder="parts"), resume=True)
    whole, parts = (RunFolder.open(tmp_path / name) for name in ("whole", "parts"))
    assert whole.read_advantages() == parts.read_advantages()
    for when in ("before", "after"):
        rows = whole.read_samples(when)
        assert rows == parts.read_samples(when)
        assert {row["task"] for row in rows} == set(whole.config.data.tasks)
        assert all(row["responses"] for row in rows)
        assert all(("images" in row) == (when == "before") for row in rows)
    (environment,) = whole.read_environments()
    assert environment["device"] == "cpu"
    assert environment["torch"].startswith("2.")
