import json
import math
from pathlib import Path

import pytest

from g2rpo.run import RunError, RunFolder, load_description


@pytest.fixture
def description():
    return load_description(settings=["output.tensorboard=false"])


@pytest.fixture
def folder(tmp_path, description):
    return RunFolder.create(tmp_path / "run", description)


def write_weights(path: Path) -> None:
    (path / "weights").mkdir()
    (path / "weights" / "a.bin").write_bytes(b"1234")


def test_open_finds_the_description_and_the_place(folder, tmp_path):
    assert RunFolder.open(folder.path).description.output.dir == str(folder.path)
    moved = folder.path.rename(tmp_path / "moved")
    assert RunFolder.open(moved).description.output.dir == str(moved)


def test_empty_folder_is_fine(tmp_path, description):
    RunFolder.create(tmp_path, description)


def test_existing_run_is_refused(folder, description):
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--output-dir"):
        RunFolder.create(folder.path, description)


def test_no_run_to_open(tmp_path):
    with pytest.raises(RunError, match=r"holds no run.*--resume"):
        RunFolder.open(tmp_path)


def test_file_in_the_way(tmp_path, description):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written.*--output-dir"):
        RunFolder.create(tmp_path / "file" / "run", description)


def test_metrics_are_json_whatever_the_numbers(folder):
    folder.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5, "e": 2})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = folder.metrics_path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["a"] is None
    (record,) = folder.read_metrics()
    assert math.isnan(record.pop("a"))
    assert record == {"step": 1, "b": math.inf, "c": -math.inf, "d": 0.5, "e": 2}


def test_truncation_drops_later_steps_and_half_a_line(folder):
    for step in (1, 2, 3):
        folder.log(step, {"a": step})
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 2, "a"')
    assert len(folder.read_metrics()) == 3
    folder.truncate_metrics(2)
    folder.log(3, {"a": 30})
    assert [record["a"] for record in folder.read_metrics()] == [1, 2, 30]


def test_truncation_before_the_first_line(folder):
    folder.truncate_metrics(0)
    assert folder.read_metrics() == []


def test_checkpoints_are_pruned_in_the_order_of_their_steps(folder):
    assert folder.latest_checkpoint() is None
    for step in (9, 10, 1_000_000):
        folder.save_checkpoint(step, write_weights)
    assert [checkpoint.step for checkpoint in folder.checkpoints()] == [10, 1_000_000]
    newest = folder.latest_checkpoint()
    assert newest is not None
    assert (newest.path / "weights" / "a.bin").read_bytes() == b"1234"


def test_checkpoint_of_the_same_step_is_replaced(folder):
    folder.save_checkpoint(1, lambda path: (path / "old").write_text(""))
    path = folder.save_checkpoint(1, lambda path: (path / "new").write_text(""))
    assert [file.name for file in path.iterdir()] == ["new"]


def test_checkpoint_that_fails_leaves_nothing(folder):
    folder.save_checkpoint(1, write_weights)

    def fail(path):
        write_weights(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.save_checkpoint(2, fail)
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-000001"]


def test_partial_checkpoint_of_a_killed_process_does_not_count(folder):
    (folder.path / "checkpoints" / ".partial-step-000007").mkdir(parents=True)
    (folder.path / "checkpoints" / "step-of-mine").mkdir()
    assert folder.latest_checkpoint() is None
    folder.save_checkpoint(7, write_weights)
    assert [checkpoint.step for checkpoint in folder.checkpoints()] == [7]


def test_summary(folder):
    assert not folder.is_finished
    path = folder.write_summary({"before": {"maths": 0.5, "mean": math.nan}, "steps": 3})
    assert json.loads(path.read_text()) == {"before": {"maths": 0.5, "mean": None}, "steps": 3}
    assert folder.is_finished


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder.create(tmp_path, load_description())
    for step in (1, 2, 3):
        folder.log(step, {"reward/maths": step / 2})
    folder.close()
    # A second process goes on after step 1, and the events of its steps hide the older ones.
    again = RunFolder.open(tmp_path)
    again.log(2, {"reward/maths": 9.0})
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("reward/maths")
    assert [(event.step, event.value) for event in events] == [(1, 0.5), (2, 9.0)]
