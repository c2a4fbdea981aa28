"""One process of test_divided_checkpoints.py: it writes and reads its part of a checkpoint.

    torchrun --nproc-per-node=2 checkpoint_worker.py FOLDER FAMILY DTYPE

The first process writes what all found into FOLDER/found.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from g2rpo_trainer import shard_files
from g2rpo_trainer.checkpoint import restore_checkpoint, save_checkpoint, staged_shards
from g2rpo_trainer.config import Model, TrainConfig
from g2rpo_trainer.distributed import join_ranks
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.optimizer import make_optimizer, optimizer_tensors, trained_parameters
from g2rpo_trainer.run_folder import RunFolder
from g2rpo_trainer.sharding import local_tensor

PART = 20_000


def take_steps(policy, optimizer, count):
    """Take steps by gradients that follow from the weights."""
    for _ in range(count):
        for number, (_, weight) in enumerate(trained_parameters(policy)):
            weight.grad = (weight.detach() * (number + 1)).sin().to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


def shards_of(policy, optimizer):
    """Return this process's parts of the weights and of the state."""
    found = {name: local_tensor(weight.detach()) for name, weight in trained_parameters(policy)}
    state = optimizer_tensors(policy, optimizer).items()
    return {**found, **{name: local_tensor(value) for name, value in state}}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def main(folder: str, dtype: str) -> None:
    torch.set_num_threads(1)
    root, written = Path(folder), []
    plain = shard_files.save_file

    def counted(tensors, path, **options):
        sizes = {name: value.numel() * value.element_size() for name, value in tensors.items()}
        written.append([path.name, sum(sizes.values()), max(sizes.values())])
        plain(tensors, path, **options)

    shard_files.save_file = counted
    with join_ranks() as ranks:
        options = {"device": "cpu", "model": Model(dtype=dtype, sharding="fsdp"), "ranks": ranks}
        policy = load_policy(str(root / "model"), **options)
        optimizer = make_optimizer(policy, TrainConfig().optimization)
        take_steps(policy, optimizer, 2)
        run = RunFolder(root / "run", TrainConfig())
        for step, part in ((1, PART), (2, shard_files.PART)):
            staged = staged_shards(run.path, policy, optimizer, ranks, part_bytes=part)
            with staged as shards, ranks.raise_on_all_ranks():

                def write(path, shards=shards):
                    save_checkpoint(path, policy, optimizer, {"step": 2}, shards)

                if ranks.is_main:
                    run.save_checkpoint(step, write)
        found = {"written": written, "resumed": []}
        before = {name: value.clone() for name, value in shards_of(policy, optimizer).items()}
        take_steps(policy, optimizer, 1)
        after = shards_of(policy, optimizer)
        for step in (1, 2):
            path = run.checkpoints.path_of(step)
            other = load_policy(str(path), **options)
            resumed = make_optimizer(other, TrainConfig().optimization)
            assert restore_checkpoint(path, other, resumed) == {"step": 2}
            is_same = same(before, shards_of(other, resumed))
            take_steps(other, resumed, 1)
            found["resumed"].append([is_same, same(after, shards_of(other, resumed))])
        found["local"] = sum(value.numel() for value in before.values())
        everything = ranks.gather_objects(found)
        if ranks.is_main:
            (root / "found.json").write_text(json.dumps(everything), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
