"""What one process of test_shortcuts.py does; started by torchrun.

    torchrun --nproc-per-node=2 shortcuts_worker.py OUTPUT

Rank 0 writes what all ranks found as JSON.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import transformers

from g2rpo_trainer import logprobs, shortcuts
from g2rpo_trainer.distributed import Ranks
from g2rpo_trainer.logprobs import completion_logprobs
from g2rpo_trainer.model.policy_model import Shortcuts, make_policy
from g2rpo_trainer.policy.build import build_tokenizer
from g2rpo_trainer.sharding import full_tensor, shard

VOCABULARY = 208


def make_own_policy(rank):
    """Return the same model everywhere; on rank 1 almost every token ends a response."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    policy = make_policy(model, SimpleNamespace(tokenizer=build_tokenizer()))
    return replace(policy, eos_ids=tuple(range(20, VOCABULARY))) if rank else policy


def make_own_prompts(rank):
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(10, VOCABULARY, (2 + rank, 5 + 4 * rank), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Lines(logging.Handler):
    """Keeps the warnings in the log."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def choose(policy, rank, lines):
    """Choose shortcuts; return them, the number of passes, and the warnings in the log."""
    counts = []
    hook = policy.model.model.layers[0].register_forward_hook(lambda *_: counts.append(1))
    prompt = {name: tensor[:1] for name, tensor in make_own_prompts(0).items()}
    chosen = shortcuts.choose_shortcuts(policy, ranks=Ranks(rank, 2), prompts=prompt)
    hook.remove()
    found = {"passes": len(counts), "shortcuts": astuple(chosen.shortcuts), "lines": lines.texts}
    lines.texts = []
    return chosen, found


def values_and_gradients(policy, prompts, rank):
    """Return log-probabilities of random responses, and gradients averaged over the processes."""
    count = 2 * len(prompts["input_ids"])
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randint(10, VOCABULARY, (count, 5), generator=generator)
    mask = torch.arange(5) < torch.arange(1, count + 1)[:, None]
    groups = torch.arange(count) // 2
    logprobs, entropies = completion_logprobs(policy, prompts, groups, tokens, mask)
    ((logprobs + 0.3 * entropies) * mask).sum().backward()
    gradients = [full_tensor(parameter.grad) for parameter in policy.model.parameters()]
    return logprobs.detach()[mask], gradients


def divide(policy, prompts, rank, lines):
    """Compare a sharded model with the whole one, computed plainly."""
    plain = replace(policy, model=copy.deepcopy(policy.model))
    shard(policy.model, torch.device("cpu"), dist.get_world_size())
    sharded, found = choose(policy, rank, lines)
    values, gradients = values_and_gradients(sharded, prompts, rank)
    assert plain.shortcuts == Shortcuts()
    expected, expected_gradients = values_and_gradients(plain, prompts, rank)
    distances = []
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        dist.all_reduce(theirs)
        theirs /= dist.get_world_size()
        distances.append(float((ours - theirs).norm() / theirs.norm()))
    found["logprobs"] = float((values - expected).abs().max())
    found["gradients"] = max(distances)
    return found


def main(output):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shortcuts._LARGE_VOCABULARY = 0
    lines = Lines()
    lines.setLevel(logging.WARNING)
    logging.getLogger("g2rpo_trainer").addHandler(lines)
    policy, prompts = make_own_policy(rank), make_own_prompts(rank)
    found = {"first": choose(policy, rank, lines)[1]}
    found["sharded"] = divide(make_own_policy(rank), prompts, rank, lines)
    if rank == 1:
        logprobs.next_positions = lambda _, positions: positions.amax(-1) + 4
    found["wrong"] = choose(policy, rank, lines)[1]
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    if rank == 0:
        Path(output).write_text(json.dumps(everything), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
