"""Heads with a weight that FSDP2 shards over processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest

WORKER = textwrap.dedent("""
    import os
    import torch, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor
    from g2rpo_torch import fused_g2rpo_loss, logprobs_and_entropy

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(0)
    weight = torch.randn(7, 4)  # 7 entries: the shards are not equal
    hidden, labels = torch.randn(size, 2, 5, 4), torch.randint(0, 7, (size, 2, 5))
    old, advantages = torch.randn(size, 2, 5), torch.randn(size, 2)
    mask = torch.ones(2, 5, dtype=torch.bool)

    def operator(weight, r):
        logprobs, entropy = logprobs_and_entropy(hidden[r], weight, labels[r])
        return (logprobs + 0.5 * entropy).sum()

    def fused(weight, r):
        return fused_g2rpo_loss(hidden[r], weight, labels[r], old[r], advantages[r], mask)[0].total

    for loss in (operator, fused):
        whole = weight.clone().requires_grad_()
        (sum(loss(whole, r) for r in range(size)) / size).backward()

        sharded = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
        loss(sharded, rank).backward()
        assert sharded.grad.placements == (Shard(0),)
        torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad)

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Linear(4, 7, bias=False)
                self.head.weight.data.copy_(weight)

            def forward(self):
                return loss(self.head.weight, rank)

        model = fully_shard(Model(), mesh=mesh)
        model().backward()
        torch.testing.assert_close(model.head.weight.grad.full_tensor(), whole.grad)
    dist.destroy_process_group()
""")


@pytest.mark.slow
def test_gradients_are_averaged_over_processes(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, "--master-port", str(port), str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
