"""Several processes have the advantages of one to the bit, and its losses up to rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from g2rpo import batch_totals
from g2rpo_torch import gather_rollouts, reduce_totals

WORKER = Path(__file__).with_name("worker.py")


def run_worker(folder: Path, processes: int) -> dict:
    output = folder / f"{processes}.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_worker(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_advantages_and_gradients_of_several_processes_are_those_of_one(alone, tmp_path, processes):
    found = run_worker(tmp_path, processes)
    assert found["advantages"] == alone["advantages"]
    assert found["task_tokens"] == alone["task_tokens"]
    assert found["mean_over_tasks"] == pytest.approx(alone["mean_over_tasks"], abs=1e-6)
    for name in ("total", "policy", "entropy"):
        ours, theirs = ([step[name] for step in each["losses"]] for each in (found, alone))
        assert ours == pytest.approx(theirs, abs=1e-5), name
    assert "process 0 brings float32 (N,), int64 (N, 3); process 1 brings" in found["disagreement"]


def test_the_compared_run_has_an_entropy_term_and_changes_the_policy(alone):
    """The entropy term acts, and the steps change the policy."""
    losses = alone["losses"]
    assert min(step["entropy"] for step in losses) > 1e-3
    assert abs(losses[0]["entropy"] - losses[-1]["entropy"]) > 1e-2
    assert len(set(alone["mean_over_tasks"])) > 20
    assert len({tuple(bits) for bits in alone["advantages"].values()}) == 3


def test_without_processes_arrays_and_totals_are_unchanged():
    rewards = torch.tensor([1.0, 2.0], requires_grad=True)
    (gathered, none), local = gather_rollouts(rewards, torch.zeros(2, 0, dtype=torch.bool))
    assert torch.equal(gathered, rewards)
    assert not gathered.requires_grad
    assert none.shape == (2, 0)
    assert local == slice(0, 2)
    totals = batch_totals(torch.ones(2, 3, dtype=torch.bool))
    assert reduce_totals(totals) is totals


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((), TypeError, "needs at least one tensor"),
        (([1.0],), TypeError, r"arrays\[0\] must be a tensor, got list"),
        ((torch.tensor(1.0),), ValueError, r"arrays\[0\] must have shape \(N, ...\), got \(\)"),
        (
            (torch.zeros(2), torch.zeros(3)),
            ValueError,
            r"arrays\[1\] must have as many rows as arrays\[0\], 2, got shape \(3,\)",
        ),
        (
            (torch.zeros(2), torch.zeros(2, device="meta")),
            ValueError,
            r"arrays\[1\] must be on the device of arrays\[0\], cpu, got meta",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, error, message):
    with pytest.raises(error, match=message):
        gather_rollouts(*arrays)


@pytest.fixture
def group_of_one(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_a_single_row_of_a_column_slice_is_gathered():
    """It counts as contiguous, although its stride is that of the table."""
    table = torch.arange(6.0).reshape(2, 3)
    (flag, column, number), _ = gather_rollouts(
        torch.tensor([True]), table[:1, 1], torch.tensor([7])
    )
    assert [flag.tolist(), column.tolist(), number.tolist()] == [[True], [1.0], [7]]
    (turned,), _ = gather_rollouts(table.T)
    assert torch.equal(turned, table.T)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("given", [(), ("tasks",), ("tasks", "entropies")])
def test_totals_of_one_process_are_unchanged(given):
    """By task also without entropies, which only the entropy term needs."""
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    options = {"tasks": torch.tensor([1, 0, 2]), "entropies": torch.tensor([[1.0, 3]] * 3)}
    counted = {name: options[name] for name in given} | ({"num_tasks": 3} if given else {})
    own = batch_totals(mask, **counted)
    reduced = reduce_totals(own)
    assert [part is None for part in reduced] == [False, False, not given, len(given) < 2]
    assert (float(reduced.tokens), float(reduced.sequences)) == (3.0, 2.0)
    if given:
        assert reduced.task_tokens.tolist() == [1.0, 2.0, 0.0]
    if len(given) == 2:
        assert reduced.task_entropy.tolist() == [1.0, 2.0, 0.0]
