"""One process of test_gathering.py: it samples from a sharded model.

    torchrun --nproc-per-node=2 gathering_worker.py OUTPUT

The first process writes how often weights were gathered, and what each process sampled.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from g2rpo_trainer import sharding
from g2rpo_trainer.distributed import join_ranks
from g2rpo_trainer.model.policy_model import Shortcuts, make_policy
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.sharding import is_sharded, shard

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.trainer import tiny_models
from tests.trainer.counted import Operations


def gathered_in(policy, prompts, ranks, length):
    """Return the gatherings of a rollout, the tokens, and whether all is divided again."""
    torch.manual_seed(0)
    share = ranks.share(len(prompts["input_ids"]))
    own = {name: tensor[list(share.padded)] for name, tensor in prompts.items()}
    # One process is done before the other.
    limits = [length - ranks.rank] * len(share.padded)
    options = {"num_generations": 2, "max_completion_length": length, "limits": limits}
    with Operations() as counted:
        found = sample(policy, own, share=share, **options)
    gathers = sum(n for name, n in counted.calls.items() if "allgather" in name)
    weights = policy.model.parameters()
    divided = all(hasattr(weight, "placements") for weight in weights)
    return {"gathers": gathers, "tokens": found.tokens.tolist(), "divided": divided}


def main(output: str) -> None:
    with join_ranks() as ranks:
        processor = tiny_models.build_processor("llama")
        model = tiny_models.build_model("llama", processor)
        policy = make_policy(model.eval(), processor)
        # No response ends before its limit, on any process.
        policy = replace(policy, eos_ids=(), closing_text=None)
        policy = replace(policy, shortcuts=Shortcuts(shared_rollouts=True))
        prompts = encode_prompts(policy, tiny_models.make_records("llama"))
        shard(model, torch.device("cpu"), ranks.size)
        assert is_sharded(model)
        found = {}
        plain = sharding._fits_whole
        for fits in (True, False):
            # Room on one process alone is not enough.
            sharding._fits_whole = plain if fits else lambda model: ranks.rank == 0
            for multiple in (1, 64):
                chosen = replace(policy, pad_to_multiple_of=multiple)
                found[f"{fits} {multiple}"] = [
                    gathered_in(chosen, prompts, ranks, length) for length in (4, 20)
                ]
        everything = ranks.gather_objects(found)
        if ranks.is_main:
            Path(output).write_text(json.dumps(everything), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
