"""Checkpoints of a divided model: each process writes its part, and reads its part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from g2rpo_trainer.checkpoint import restore_checkpoint, save_checkpoint
from g2rpo_trainer.config import Model, TrainConfig
from g2rpo_trainer.files import checksum_fault
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.model.reading import read_parts
from g2rpo_trainer.optimizer import make_optimizer, optimizer_tensors

from . import tiny_models
from .checkpoint_worker import PART, take_steps
from .launched import run_worker

WORKER = Path(__file__).with_name("checkpoint_worker.py")
CASES = [("llama", "float32"), ("qwen2_5_vl", "bfloat16"), ("gemma3", "float32")]


@pytest.fixture(scope="module", params=CASES, ids=[name for name, _ in CASES])
def saved(request, tmp_path_factory):
    """Return the folder, the dtype and what two processes found."""
    family, dtype = request.param
    folder = tmp_path_factory.mktemp(family)
    tiny_models.save(family, folder / "model")
    (folder / "run").mkdir()
    run_worker(WORKER, folder, dtype)
    return folder, dtype, json.loads((folder / "found.json").read_text())


def checkpoints(folder):
    return [folder / "run" / "checkpoints" / f"step-00000{step}" for step in (1, 2)]


def policies(folder, dtype):
    """Return the policy and optimiser of one process after the same steps, by each checkpoint."""
    options = {"device": "cpu", "model": Model(dtype=dtype)}
    whole = load_policy(str(folder / "model"), **options)
    optimizer = make_optimizer(whole, TrainConfig().optimization)
    take_steps(whole, optimizer, 2)
    yield whole, optimizer
    for path in checkpoints(folder):
        policy = load_policy(str(path), **options)
        restored = make_optimizer(policy, TrainConfig().optimization)
        restore_checkpoint(path, policy, restored)
        yield policy, restored


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(saved):
    _, _, found = saved
    assert [each["resumed"] for each in found] == [[[True, True], [True, True]]] * 2


@pytest.mark.slow
def test_a_process_holds_its_own_file_and_no_more(saved):
    """Of a model of many files the first process writes about half, one at a time."""
    _, _, found = saved
    files = [each["written"][:-2] for each in found]
    totals = [sum(size for _, size, _ in each) for each in files]
    assert 0.3 < totals[0] / sum(totals) < 0.7
    for name, size, largest in (file for each in files for file in each):
        assert size <= max(PART, largest), name
    assert sum(totals) > 6 * max(size for each in files for _, size, _ in each)


@pytest.mark.slow
def test_one_process_reads_what_two_have_written(saved):
    folder, dtype, _ = saved
    (whole, optimizer), *others = policies(folder, dtype)
    expected = {**whole.model.state_dict(), **optimizer_tensors(whole, optimizer)}
    for policy, restored in others:
        found = {**policy.model.state_dict(), **optimizer_tensors(policy, restored)}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


def mapped_files(weights):
    """Return the files that the memory of weights is mapped from, None where it is none."""
    areas = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        area, *_, inode, path = (line + " ").split(" ", 5)
        first, last = (int(end, 16) for end in area.split("-"))
        areas.append((first, last, path.strip() if int(inode) else None))
    found = set()
    for weight in weights:
        at = weight.data_ptr()
        found.add(next((path for first, last, path in areas if first <= at < last), None))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_whole_weights_are_mapped_and_not_copied_before_they_are_divided(saved):
    """The processes of a machine share the pages of the files, and copy their own rows."""
    folder, dtype, _ = saved
    for path in checkpoints(folder):
        model, _ = read_parts(str(path), Model(dtype=dtype))
        files = mapped_files(model.parameters())
        assert files == {str(file) for file in path.glob("model*.safetensors")}
        copies = [weight.detach().clone() for weight in model.parameters()]
        assert mapped_files(copies).isdisjoint(files)


@pytest.mark.slow
def test_few_bytes_are_the_files_of_one_process(saved, tmp_path):
    folder, dtype, _ = saved
    whole, optimizer = next(policies(folder, dtype))
    save_checkpoint(tmp_path, whole, optimizer, {"step": 2})
    many, few = ({path.name for path in each.iterdir()} for each in checkpoints(folder))
    assert few == {path.name for path in tmp_path.iterdir()} | {"checksums.json"}
    assert {"model.safetensors.index.json", "model-00002.safetensors"} < many
    assert "model.safetensors" not in many
    for name in ("config.json", "generation_config.json"):
        assert (checkpoints(folder)[0] / name).read_text() == (tmp_path / name).read_text()
    assert not list((folder / "run" / "checkpoints").glob(".partial*"))


@pytest.mark.slow
def test_checksums_cover_the_parts(saved):
    folder, _, _ = saved
    path = checkpoints(folder)[0]
    assert checksum_fault(path) is None
    part = path / "optimizer-00002.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "optimizer-00002.safetensors does not have" in checksum_fault(path)
    part.unlink()
    assert checksum_fault(path) == "optimizer-00002.safetensors is missing"
    part.write_bytes(content)
