"""A disk that fills up costs at most the steps since the last checkpoint."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from g2rpo_trainer import load_policy, train
from g2rpo_trainer.checkpoint import save_checkpoint
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.optimizer import make_optimizer
from g2rpo_trainer.run_folder import RunFolder

from .full_disk import disk_with_room_for


@pytest.fixture
def folder(tiny_run, tmp_path):
    config = tiny_run("output.trackers=[]", "output.keep_checkpoints=1")
    return RunFolder.create(tmp_path / "run", config)


@pytest.fixture
def write(random_policy, folder):
    """Return what fills a checkpoint: the policy, an optimiser that took a step, a state."""
    policy = replace(random_policy, model=copy.deepcopy(random_policy.model))
    optimizer = make_optimizer(policy, folder.config.optimization)
    for weight in optimizer.weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    return lambda path: save_checkpoint(path, policy, optimizer, {"step": 1})


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_every_write_of_a_checkpoint_may_fail(folder, write):
    folder.log(1, {"a": 1.0})
    first = contents(folder.save_checkpoint(1, write))
    with disk_with_room_for(None) as disk:
        folder.save_checkpoint(2, write)
    assert disk.writes > 20
    complete = contents(folder.checkpoints.path_of(2))
    assert set(complete) == set(first)
    for room in range(disk.writes - 1):
        before, step = folder.checkpoints.latest(), 3 + room
        with disk_with_room_for(room), pytest.raises(RunError) as failed:
            folder.save_checkpoint(step, write)
        assert f"the checkpoint after step {step} cannot be written" in str(failed.value)
        assert "No space left on device" in str(failed.value)
        assert "make room" in str(failed.value)
        newest = folder.checkpoints.latest()
        # The very last sync comes after the folder has its name.
        assert newest == before or room == disk.writes - 2
        assert contents(newest.path) == complete
        assert not list((folder.path / "checkpoints").glob(".*"))
    folder.save_checkpoint(10_000, write)
    assert [checkpoint.step for checkpoint in folder.checkpoints.all()] == [10_000]


def test_a_checkpoint_that_cannot_be_dropped_goes_with_the_next(folder, write):
    folder.save_checkpoint(1, write)
    with disk_with_room_for(None) as disk:
        folder.save_checkpoint(2, write)
    with disk_with_room_for(disk.writes - 1):
        folder.save_checkpoint(3, write)
    assert [checkpoint.step for checkpoint in folder.checkpoints.all()] == [2, 3]
    folder.save_checkpoint(4, write)
    assert [checkpoint.step for checkpoint in folder.checkpoints.all()] == [4]


@pytest.mark.parametrize("room", [0, 1, 2])
def test_every_write_of_a_log_may_fail(folder, room):
    row = {"task": "ocr", "prompt": "?"}
    folder.log(1, {"a": 1}, [row])
    with disk_with_room_for(None) as disk:
        folder.log(2, {"a": 2}, [row])
    assert disk.writes == 2
    with disk_with_room_for(room):
        if room < disk.writes:
            with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written .*make room"):
                folder.log(3, {"a": 3}, [row])
        else:
            folder.log(3, {"a": 3}, [row])
    folder.begin(2)
    folder.log(3, {"a": 30}, [row])
    assert [line["a"] for line in folder.read_metrics()] == [1, 2, 30]
    assert [line["step"] for line in folder.read_completions()] == [1, 2, 3]


def comparable(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in each.items() if "time" not in key} for each in lines]


def test_a_run_on_a_full_disk_says_how_it_goes_on_and_does(tiny_run, tmp_path):
    settings = ("output.trackers=[]", "output.save_steps=2", "optimization.steps=4")
    with disk_with_room_for(None) as disk:
        expected = train(tiny_run(*settings, folder="whole"))
    config = tiny_run(*settings, folder="parts")
    # The last checkpoint is the last that takes many writes; only the summary follows.
    with disk_with_room_for(disk.writes - 12), pytest.raises(RunError) as failed:
        train(config)
    assert "the checkpoint after step 4 cannot be written" in str(failed.value)
    (note,) = failed.value.__notes__
    assert "had done 4 of 4 steps; it goes on from the checkpoint after step 2" in note
    assert f"g2rpo train --resume --output-dir {tmp_path / 'parts'}" in note
    summary = train(config, resume=True)
    assert summary | {"seconds": 0} == expected | {"seconds": 0}
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


def test_the_command_line_shows_where_the_run_stands(tmp_path, monkeypatch, capsys):
    from g2rpo_cli._errors import reported

    error = RunError("the disk is full")
    error.add_note("continue with: g2rpo train --resume")
    with pytest.raises(SystemExit) as ended, reported():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: the disk is full\ncontinue with: g2rpo train --resume\n"
    )


def test_a_policy_loads_from_what_is_left(folder, write):
    folder.save_checkpoint(1, write)
    with disk_with_room_for(9), pytest.raises(RunError):
        folder.save_checkpoint(2, write)
    load_policy(str(folder.checkpoints.latest().path), device="cpu")
