"""Whole models in each process beside FSDP2 with float32 shards: bytes a weight, and collectives.

    torchrun --standalone --nproc-per-node 2 benchmarks/sharding.py --output sharding.md

Three ways to train a random Qwen2 in bfloat16: the trainer's replicas (bfloat16 weights, float32
masters, gradients summed once an update), and FSDP2 with float32 shards that compute in bfloat16,
which gathers each layer for each pass, or keeps it after the forward pass. Counted are the bytes
that stay on a rank and the collectives of an update and of 64 generated tokens; nothing is timed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _report import markdown_table, measured_on
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from g2rpo_trainer.distributed import Ranks
from g2rpo_trainer.optimizer import MasterAdamW

HEADER = [
    "way", "weights", "gradients", "moments", "masters", "an update", "64 tokens",
]  # fmt: skip
WAYS = ("replicas", "FSDP2", "FSDP2, kept after the forward pass")
TOKENS = 64


class Collectives(TorchDispatchMode):
    """Counts the collectives inside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        """Run an operator, and count it if it is one of ``torch.distributed``."""
        if function.namespace == "c10d":
            self.counts[function._schema.name.split("::")[1].strip("_")] += 1
        return function(*arguments, **(named or {}))

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items()) or "none"


def main() -> None:
    """Count for each way, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    rows = [[way, *count(way)] for way in WAYS]
    if dist.get_rank() == 0:
        size = dist.get_world_size()
        text = (
            f"# Replicas and shards\n\nBytes a weight on each of {size} ranks, and collectives of "
            f"a rank; four layers. {measured_on(packages=['torch', 'transformers'])}\n\n"
            f"{markdown_table(HEADER, rows)}\n"
        )
        print(text)
        if options.output:
            options.output.write_text(text, encoding="utf-8")
    dist.destroy_process_group()


def count(way: str) -> list[str]:
    """Return bytes a weight and the collectives of one way."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    size = sum(weight.numel() for weight in model.parameters())
    optimizer: Any
    if way == "replicas":
        model = model.to(torch.bfloat16)
        optimizer = MasterAdamW(list(model.parameters()), lr=1e-3)
    else:
        shard(model, keep="kept" in way)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 2048, (4, 64))
    with Collectives() as update:
        model(input_ids=ids, labels=ids).loss.backward()
        if way == "replicas":
            ranks = Ranks(dist.get_rank(), dist.get_world_size())
            ranks.all_reduce_gradients(list(model.parameters()))
    gradients = held(weight.grad for weight in model.parameters())
    optimizer.step()
    optimizer.zero_grad()
    moments = held(t for state in optimizer.state.values() for t in state.values())
    weights = {id(weight) for weight in model.parameters()}
    masters = held(m for m in getattr(optimizer, "masters", []) if id(m) not in weights)
    with torch.no_grad(), Collectives() as generated:
        cache, token = None, ids[:, :8]
        for _ in range(TOKENS):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
    parts = (held(model.parameters()), gradients, moments, masters)
    return [*(f"{part / size:.1f}" for part in parts), str(update), str(generated)]


def shard(model: Any, *, keep: bool) -> None:
    """Shard a model as FSDP2 recommends: float32 shards, bfloat16 in passes."""
    options: dict[str, Any] = {
        "mesh": init_device_mesh("cpu", (dist.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        "reshard_after_forward": not keep,
    }
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)


def held(tensors: Any) -> int:
    """Return the bytes of the local parts of tensors."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None)
    return sum(tensor.nbytes for tensor in local)


if __name__ == "__main__":
    main()
