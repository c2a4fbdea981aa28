"""What one process of test_trials.py does; started by torchrun.

    torchrun --nproc-per-node=2 trials_worker.py OUTPUT

Every process has prompts of its own, and rank 0 writes what all of them found as JSON.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import transformers

from g2rpo_trainer.distributed.sharding import shard, whole
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.model.trials import Trials
from g2rpo_trainer.passes import head, packed
from g2rpo_trainer.passes.forward import completion_logprobs
from g2rpo_trainer.passes.shortcuts import find_shortcuts
from g2rpo_trainer.policy.build import build_tokenizer
from g2rpo_trainer.sampling import sample

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
    """Keeps what the trials write into the log."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def passes_of_everything(policy, prompts):
    """Go through sampling and the pass over the responses; return how often the model was run."""
    counts = []
    hook = policy.model.model.layers[0].register_forward_hook(lambda *_: counts.append(1))
    responses = sample(policy, prompts, num_generations=2, max_completion_length=3)
    groups = torch.arange(len(prompts["input_ids"])).repeat_interleave(2)
    with torch.no_grad():
        completion_logprobs(policy, prompts, groups, responses.tokens, responses.mask)
    hook.remove()
    return len(counts)


def find_out(policy, prompts, lines):
    """Try all shortcuts; return the passes it took, the verdicts, and the lines in the log."""
    counts = []
    hook = policy.model.model.layers[0].register_forward_hook(lambda *_: counts.append(1))
    find_shortcuts(policy, prompts)
    hook.remove()
    verdicts = dict(policy.trials._verdicts)
    texts = list(lines.texts)
    lines.texts.clear()
    return {"passes": len(counts), "verdicts": verdicts, "lines": texts}


def values_and_gradients(policy, prompts, rank):
    """Return log-probabilities of random responses, and gradients averaged over the processes."""
    count = 2 * len(prompts["input_ids"])
    generator = torch.Generator().manual_seed(rank)
    tokens = torch.randint(10, VOCABULARY, (count, 5), generator=generator)
    mask = torch.arange(5) < torch.arange(1, count + 1)[:, None]
    groups = torch.arange(count) // 2
    logprobs, entropies = completion_logprobs(policy, prompts, groups, tokens, mask)
    ((logprobs + 0.3 * entropies) * mask).sum().backward()
    gradients = [whole(parameter.grad) for parameter in policy.model.parameters()]
    return logprobs.detach()[mask], gradients


def divide(policy, prompts, rank, lines):
    """Compare a model that is divided over the processes with the whole one, computed plainly."""
    model = copy.deepcopy(policy.model)
    divided = replace(policy, trials=Trials())
    shard(divided.model, torch.device("cpu"), dist.get_world_size())
    found = find_out(divided, prompts, lines)
    logprobs, gradients = values_and_gradients(divided, prompts, rank)
    head._LARGE_VOCABULARY = VOCABULARY + 1
    plain = replace(policy, model=model, trials=Trials("off"))
    expected, expected_gradients = values_and_gradients(plain, prompts, rank)
    distances = []
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        dist.all_reduce(theirs)
        theirs /= dist.get_world_size()
        distances.append(float((ours - theirs).norm() / theirs.norm()))
    found["logprobs"] = float((logprobs - expected).abs().max())
    found["gradients"] = max(distances)
    return found


def main(output):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    head._LARGE_VOCABULARY = 0
    lines = Lines()
    logging.getLogger("g2rpo_torch").addHandler(lines)
    policy, prompts = make_own_policy(rank), make_own_prompts(rank)
    found = {"alone": None}
    if rank == 0:
        # Nobody else asks: this must neither wait nor try.
        passes_of_everything(policy, prompts)
        found["alone"] = dict(policy.trials._verdicts)
    found["first"] = find_out(policy, prompts, lines)
    found["second"] = find_out(policy, prompts, lines)
    found["divided"] = divide(make_own_policy(rank), prompts, rank, lines)
    head._LARGE_VOCABULARY = 0
    if rank == 1:
        packed.next_positions = lambda prompts, positions: positions.amax(-1) + 4
    found["wrong"] = find_out(replace(policy, trials=Trials()), prompts, lines)
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    if rank == 0:
        Path(output).write_text(json.dumps(everything), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
