import json
import math
from pathlib import Path

import pytest

from g2rpo_trainer.config import load_config
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.run_folder import RunFolder


@pytest.fixture
def config():
    return load_config(settings=["output.trackers=[]"])


@pytest.fixture
def folder(tmp_path, config):
    return RunFolder.create(tmp_path / "run", config)


def write_weights(path: Path) -> None:
    (path / "weights").mkdir()
    (path / "weights" / "a.bin").write_bytes(b"1234")


def test_open_finds_the_description_and_the_place(folder, tmp_path):
    assert RunFolder.open(folder.path).config.output.dir == str(folder.path)
    moved = folder.path.rename(tmp_path / "moved")
    assert RunFolder.open(moved).config.output.dir == str(moved)


def test_empty_folder_is_fine(tmp_path, config):
    RunFolder.create(tmp_path, config)


def test_existing_run_is_refused(folder, config):
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--output-dir"):
        RunFolder.create(folder.path, config)


def test_no_run_to_open(tmp_path):
    with pytest.raises(RunError, match=r"holds no run.*--resume"):
        RunFolder.open(tmp_path)


def test_file_in_the_way(tmp_path, config):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written.*--output-dir"):
        RunFolder.create(tmp_path / "file" / "run", config)


def test_metrics_are_json_whatever_the_numbers(folder):
    folder.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5, "e": 2})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = folder.metrics_path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["a"] is None
    (record,) = folder.read_metrics()
    assert math.isnan(record.pop("a"))
    assert record == {"step": 1, "b": math.inf, "c": -math.inf, "d": 0.5, "e": 2}


def test_a_resumed_run_drops_later_steps_and_half_a_line(folder):
    for step in (1, 2, 3):
        folder.log(step, {"a": step}, [{"task": "ocr", "prompt": "?", "n": step}])
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 2, "a"')
    assert len(folder.read_metrics()) == 3
    folder.begin(2)
    folder.log(3, {"a": 30}, [{"task": "ocr", "prompt": "?", "n": 30}])
    assert [record["a"] for record in folder.read_metrics()] == [1, 2, 30]
    assert [(row["step"], row["n"]) for row in folder.read_completions()] == [
        (1, 1),
        (2, 2),
        (3, 30),
    ]


@pytest.mark.parametrize("garbage", [b"\0" * 40 + b"\n", b'"text"\n', b'{"step": 2}'])
def test_what_a_power_cut_left_in_a_log_ends_it(folder, garbage):
    folder.log(1, {"a": 1})
    with folder.metrics_path.open("ab") as file:
        file.write(garbage)
    assert [record["a"] for record in folder.read_metrics()] == [1]
    folder.begin(9)
    folder.log(10, {"a": 10})
    assert [record["a"] for record in folder.read_metrics()] == [1, 10]


def test_beginning_before_the_first_line(folder):
    folder.begin(0)
    assert folder.read_metrics() == []


def test_as_many_completions_are_kept_as_the_description_says(tmp_path):
    rows = [{"task": task, "prompt": "?", "response": "é"} for task in ("ocr", "maths") * 9]
    for number in (0, 3):
        settings = ["output.trackers=[]", f"output.completions={number}"]
        folder = RunFolder.create(tmp_path / str(number), load_config(settings=settings))
        folder.log(1, {}, rows)
        folder.log(2, {}, rows)
        assert [row["step"] for row in folder.read_completions()] == [1] * number + [2] * number
        assert folder.completions_path.exists() == (number > 0)
    assert "é" in folder.completions_path.read_text(encoding="utf-8")


def test_checkpoints_are_pruned_in_the_order_of_their_steps(folder):
    assert folder.checkpoints.latest() is None
    for step in (9, 10, 1_000_000):
        folder.save_checkpoint(step, write_weights)
    assert [checkpoint.step for checkpoint in folder.checkpoints.all()] == [10, 1_000_000]
    newest = folder.checkpoints.latest()
    assert newest is not None
    assert (newest.path / "weights" / "a.bin").read_bytes() == b"1234"


def test_checkpoint_of_the_same_step_stays(folder):
    folder.save_checkpoint(1, lambda path: (path / "first").write_text(""))
    path = folder.save_checkpoint(1, lambda path: (path / "second").write_text(""))
    assert sorted(file.name for file in path.iterdir()) == ["checksums.json", "first"]


def test_only_checkpoints_newer_than_the_newest_whole_one_are_set_aside(tmp_path):
    config = load_config(settings=["output.trackers=[]", "output.keep_checkpoints=9"])
    folder = RunFolder.create(tmp_path / "run", config)
    for step in (1, 2, 3, 4):
        path = folder.save_checkpoint(step, write_weights)
        if step != 2:
            (path / "weights" / "a.bin").write_bytes(b"4321")
    texts = folder.checkpoints.set_damaged_aside()
    assert [text.rpartition(" ")[2] for text in texts] == [
        "damaged-step-000004",
        "damaged-step-000003",
    ]
    assert [checkpoint.step for checkpoint in folder.checkpoints.all()] == [1, 2]
    assert folder.checkpoints.set_damaged_aside() == []


def test_a_folder_is_locked_against_others_until_the_end(tmp_path):
    with RunFolder.locked(tmp_path / "run"):
        with (
            pytest.raises(RunError, match=r"run is in use.*--output-dir"),
            RunFolder.locked(tmp_path / "run"),
        ):
            pass
        with RunFolder.locked(tmp_path / "other"):
            pass
    with RunFolder.locked(tmp_path / "run"):
        pass


def test_checkpoint_that_fails_leaves_nothing(folder):
    folder.save_checkpoint(1, write_weights)

    def fail(path):
        write_weights(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.save_checkpoint(2, fail)
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-000001"]


def test_leftovers_of_a_killed_process_do_not_count_and_are_cleaned(folder):
    for name in (".partial-step-000007", ".dropped-step-000003", "step-of-mine"):
        (folder.path / "checkpoints" / name).mkdir(parents=True)
    assert folder.checkpoints.latest() is None
    folder.begin(0)
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-of-mine"]
    folder.save_checkpoint(7, write_weights)
    assert [checkpoint.step for checkpoint in folder.checkpoints.all()] == [7]


def test_summary(folder):
    assert not folder.is_finished
    path = folder.write_summary({"before": {"maths": 0.5, "mean": math.nan}, "steps": 3})
    assert json.loads(path.read_text()) == {"before": {"maths": 0.5, "mean": None}, "steps": 3}
    assert folder.is_finished
