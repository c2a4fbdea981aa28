"""Updates in several processes, with the whole model in each or a part of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from g2rpo_trainer.config import Model
from g2rpo_trainer.device import resolve_device
from g2rpo_trainer.distributed import Ranks
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.launch import Launch
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.sharding import wants_sharding

from .conftest import scorer_of
from .launched import run_worker
from .processes_worker import CASES, STEPS

WORKER = Path(__file__).with_name("processes_worker.py")
SIXTEEN_BITS = "bfloat16"


def updates(folder: Path, mode: str, *cases: str) -> tuple[dict, dict]:
    """Return what the worker reports and the tensors it ends with, case by case."""
    output = folder / mode
    run_worker(WORKER, output, mode, *cases, processes=1 if mode == "alone" else 2)
    found = json.loads(output.with_suffix(".json").read_text())
    tensors: dict = {case: {} for case in cases}
    for key, tensor in load_file(output.with_suffix(".safetensors")).items():
        case, _, name = key.partition("/")
        tensors[case][name] = tensor
    return found, tensors


def assert_equal(one, other, case: str) -> None:
    losses, expected = one[0][case], other[0][case]
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5), case
    tensors, others = one[1][case], other[1][case]
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-5, msg=f"{case}: {name}")


@pytest.mark.slow
def test_the_same_update_however_the_batch_is_spread(tmp_path):
    """Losses, metrics, gradients of tasks, weights and moments."""
    alone, replicas, shards = (
        updates(tmp_path, mode, *CASES) for mode in ("alone", "replicas", "sharded")
    )
    for case in CASES:
        assert len(alone[0][case]) == STEPS
        if case != SIXTEEN_BITS:  # where rounding in a pass depends on who is in it
            assert_equal(replicas, alone, case)
            assert_equal(shards, alone, case)
        assert_equal(shards, replicas, case)
    # What is compared is not small beside the tolerance.
    moved = alone[0]["text"]
    assert min(step["grad_norm"] for step in moved) > 0.1
    assert abs(moved[0]["loss/total"] - moved[-1]["loss/total"]) > 1e-3
    assert min(alone[0][case][-1]["kl"] for case in CASES if "adapter" in case) > 1e-3
    for found, _ in (alone, replicas, shards):
        for skipped in found["skips"]:
            one, two, three, text, four = skipped
            assert (one, two, three, four) == ([1, True], [1, False], [2, True], [3, True])
            kind = "RunError" if found is alone[0] else "SharedError"
            assert text.startswith(f"{kind}: step 1: the gradient is not finite (nan), 2 times")
    for found, _ in (replicas, shards):
        main, other = found["errors"]
        assert main[0] == other[0] == "SharedError: line 7: no answer"
        assert main[1] == "SharedError: process 1 failed: KeyError: 'oops'"
        assert other[1] == "KeyError: 'oops'"
        different = "processes 0 and 1 have loaded different weights; --model must name the same"
        assert main[2].startswith(f"0.0: {different}")
        assert other[2].startswith(f"1.0: {different}")
        assert len(main) == len(other) == 3


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_work_is_divided(size):
    for total in range(12):
        shares = [Ranks(rank, size).share(total) for rank in range(size)]
        assert sorted(number for share in shares for number in share.own) == list(range(total))
        assert {len(share.padded) for share in shares} == {-(-total // size)}
        for share in shares:
            assert share.own == share.padded[: len(share.own)] == tuple(sorted(share.own))
            assert all(number < total for number in share.padded)


def test_tasks_that_take_turns_go_round():
    """Each of two processes gets every one of six tasks within two steps of six prompts."""
    tasks = [number % 6 for number in Ranks(0, 2).share(12).own]
    assert len(set(tasks)) == 6


def test_one_process_shares_with_nobody():
    alone = Ranks()
    assert (alone.rank, alone.size, alone.is_main) == (0, 1, True)
    assert (alone.any(False), alone.any(True)) == (False, True)
    assert (alone.max(-3), alone.sum(4)) == (-3, 4)
    assert alone.gather_sorted_objects([3, 1], ["late", "early"]) == ["early", "late"]
    assert alone.reduce_by_name({"a": 1.5, "b/max": -2.0}) == {"a": 1.5, "b/max": -2.0}
    (column,), own = alone.gather_sorted(torch.tensor([0, 0, 1]), torch.tensor([5, 6, 7]))
    assert column.tolist() == [5, 6, 7]
    assert own.tolist() == [0, 1, 2]
    error = RunError("plain")
    with pytest.raises(RunError) as raised, alone.raise_on_all_ranks():
        raise error
    assert raised.value is error


def test_a_share_is_sampled_like_the_whole(random_policy, prompts):
    """A response does not depend on who samples it; repeats are left out."""
    options = {"num_generations": 2, "max_completion_length": 6}
    torch.manual_seed(3)
    whole = sample(random_policy, prompts, **options)
    after = torch.rand(1)
    for rank in range(4):
        share = Ranks(rank, 4).share(len(prompts["input_ids"]))
        rows = torch.tensor(share.padded)
        torch.manual_seed(3)
        mine = {name: tensor[rows] for name, tensor in prompts.items()}
        part = sample(random_policy, mine, **options, share=share)
        assert torch.rand(1) == after
        expected = [whole.texts[2 * number + k] for number in share.own for k in (0, 1)]
        assert part.texts == expected
        assert len(part.tokens) == len(expected)


def test_no_response_has_no_reward(tiny_run):
    with scorer_of(tiny_run()) as scorer:
        assert all(column.shape == (0,) for column in scorer([], []).columns().values())


@pytest.fixture
def launched(monkeypatch):
    """Pretend to be one of several processes, without a connection to others."""

    def launch(**variables):
        for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", **variables}.items():
            monkeypatch.setenv(name, value)

    return launch


def test_what_a_launcher_tells(launched):
    assert Launch.read() == Launch()
    launched(LOCAL_WORLD_SIZE="2")
    assert Launch.read() == Launch(1, 2, 1, 2)
    launched(LOCAL_WORLD_SIZE="2", ACCELERATE_USE_FSDP="true")
    assert Launch.read().sharded
    # A cluster's own variable says nothing.
    assert Launch.read({"WORLD_SIZE": "4"}).size == 1


def test_who_divides_the_model(launched):
    assert not wants_sharding(Model(sharding="fsdp"), 1)
    assert wants_sharding(Model(sharding="fsdp"), 2)
    assert not wants_sharding(Model(), 2)
    launched(ACCELERATE_USE_FSDP="true")
    assert wants_sharding(Model(), 2)
    assert not wants_sharding(Model(sharding="none"), 2)


def test_each_process_needs_a_gpu(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launched(LOCAL_WORLD_SIZE="2")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(RunError, match="is 'cuda:0' in 2 processes on a machine with 2 cuda"):
        resolve_device("cuda:0")
    launched(LOCAL_WORLD_SIZE="4")
    with pytest.raises(RunError, match="is 'cuda' in 4 processes on a machine with 2 cuda"):
        resolve_device("auto")
    launched(LOCAL_WORLD_SIZE="4", ACCELERATE_USE_CPU="true")
    assert resolve_device("auto") == torch.device("cpu")


def test_workers_are_divided(launched, tiny_run, monkeypatch):
    import g2rpo_trainer.scoring

    made = []
    scoring = g2rpo_trainer.scoring
    monkeypatch.setattr(scoring, "RewardPool", lambda workers, **_: made.append(workers))
    for workers in (5, 1, 0):
        scorer_of(tiny_run(f"rewards.workers={workers}"))
    launched(LOCAL_WORLD_SIZE="2")
    for workers in (5, 1, 0):
        scorer_of(tiny_run(f"rewards.workers={workers}"))
    assert made == [5, 1, 0, 2, 1, 0]
