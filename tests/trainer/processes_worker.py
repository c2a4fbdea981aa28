"""What one process of test_processes.py does: updates on a batch that is the same everywhere.

    torchrun --nproc-per-node=2 processes_worker.py OUTPUT CASE...

The first process writes, case by case, what it found. Started without torchrun it is alone.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from g2rpo_trainer.batch import Batch
from g2rpo_trainer.config import load_config
from g2rpo_trainer.device import dtype_on
from g2rpo_trainer.distributed import join_ranks
from g2rpo_trainer.equity import gradient_norms
from g2rpo_trainer.errors import RunError
from g2rpo_trainer.metrics import equity_metrics
from g2rpo_trainer.model import adapting
from g2rpo_trainer.model.policy_model import Shortcuts, make_policy
from g2rpo_trainer.optimizer import make_optimizer, optimizer_tensors, trained_parameters
from g2rpo_trainer.progress import Progress
from g2rpo_trainer.prompts.encoding import encode_prompts
from g2rpo_trainer.sampling import sample
from g2rpo_trainer.sharding import full_tensor, is_sharded, reshard, shard

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.trainer import tiny_models
from tests.trainer.parts import learner_of

_TWICE = ["optimization.beta=0.1", "optimization.updates_per_batch=2"]
# An adapter begins at nothing: it must move for the distance to its base to be worth comparing.
_FAST = ["optimization.learning_rate=0.02"]
# Family, what the run is like, and how many of the four prompts take part.
CASES = {
    "text": ("llama", [], 4),
    "mini-batches": ("qwen3", ["optimization.updates_per_batch=2"], 4),
    "images": ("qwen2_5_vl", [], 4),
    "uneven": ("llava", [], 3),
    "one prompt": ("llama", ["optimization.updates_per_batch=2"], 1),
    "bfloat16": ("llama", ["model.dtype=bfloat16"], 4),
    "from hidden states": ("llama", [], 4),
    "reference": ("llama", _TWICE, 3),
    "adapter": ("qwen2_5_vl", ["model.lora.rank=4", "optimization.beta=0.1", *_FAST], 3),
    "adapter everywhere": (
        "llava",
        ["model.lora.rank=2", "model.lora.target_modules=[q_proj, lm_head]", *_TWICE, *_FAST],
        4,
    ),
}
STEPS = 3


def describe(settings):
    return load_config(
        settings=[
            "data.tasks=[ocr, maths]",
            "rollout.prompts_per_step=4",
            "rollout.num_generations=3",
            "rollout.max_completion_length=6",
            "length.mode=off",
            "optimization.learning_rate=0.0003",
            "optimization.micro_batch_tokens=500",
            "output.equity_steps=1",
            *settings,
        ]
    )


def whole_batch(policy, records):
    """Return all responses to all prompts, as a single process has them."""
    prompts = encode_prompts(policy, records)
    torch.manual_seed(0)
    found = sample(policy, prompts, num_generations=3, max_completion_length=6)
    count = len(records)
    groups = torch.arange(count).repeat_interleave(3)
    return Batch(
        prompts=prompts,
        groups=groups,
        tokens=found.tokens,
        mask=found.mask,
        logprobs=found.logprobs,
        entropies=found.entropies,
        advantages=torch.randn(3 * count, generator=torch.Generator().manual_seed(1)),
        length_advantages=None,
        tasks=groups % 2,
        task_names=["ocr", "maths"],
        numbers=groups,
    )


def own_part(batch, ranks):
    prompts = len(batch.prompts["input_ids"])
    own = torch.tensor(ranks.share(prompts).own, dtype=torch.int64)
    return batch.rows(torch.isin(batch.numbers, own).nonzero()[:, 0])


def prepared(case, config, sharded, ranks):
    """Return a policy, its reference, and this process's part of a batch."""
    family, _, prompts = CASES[case]
    processor = tiny_models.build_processor(family)
    model = tiny_models.build_model(family, getattr(processor, "tokenizer", processor))
    model = model.to(getattr(torch, dtype_on(config.model.dtype, torch.device("cpu"))))
    adapting.attach_adapter(model, config.model, None)
    policy = make_policy(model.eval(), processor)
    batch = own_part(whole_batch(policy, tiny_models.make_records(family)[:prompts]), ranks)
    shortcuts = Shortcuts(packed_rows=True, without_logits=case == "from hidden states")
    policy = replace(policy, shortcuts=shortcuts)
    # Of an adapter the base is the reference.
    reference = policy
    if not policy.has_adapter:
        reference = replace(policy, model=copy.deepcopy(model))
    if sharded:
        shard(model, torch.device("cpu"), ranks.size)
        if reference is not policy:
            shard(reference.model, torch.device("cpu"), ranks.size)
        assert is_sharded(model)
    return policy, reference, batch


def learn(case, sharded, ranks):
    config = describe(CASES[case][1])
    policy, reference, batch = prepared(case, config, sharded, ranks)
    optimizer, progress = make_optimizer(policy, config.optimization), Progress()
    learner = learner_of(
        policy,
        config,
        optimizer,
        reference=reference if config.optimization.beta else None,
        ranks=ranks,
    )
    losses = []
    for _ in range(STEPS):
        part = learner.with_reference(batch)
        metrics = equity_metrics(gradient_norms(learner, part, config.output, 1).norms)
        metrics |= learner.update(part, progress)
        losses.append(metrics)
    state = {**saved_weights(policy), **optimizer_tensors(policy, optimizer)}
    return losses, {name: full_tensor(value).float().clone() for name, value in state.items()}


def saved_weights(policy):
    """Return what a checkpoint holds."""
    reshard(policy.model)
    weights = policy.model.state_dict()
    if not policy.has_adapter:
        return weights
    weights = {name: weight for name, weight in weights.items() if "lora_" in name}
    assert len(weights) % 2 == 0
    return weights


def skips(case, sharded, ranks):
    """Return what each process does about a gradient that is not finite on the last one alone."""
    config = describe(["optimization.max_skipped_steps=1"])
    policy, _, batch = prepared(case, config, sharded, ranks)
    optimizer, progress = make_optimizer(policy, config.optimization), Progress()
    learner = learner_of(policy, config, optimizer, ranks=ranks)
    advantages = batch.advantages.clone()
    if ranks.rank == ranks.size - 1:
        advantages[0] = torch.nan
    broken = replace(batch, advantages=advantages)

    def own_weights():
        weights = [weight for _, weight in trained_parameters(policy)]
        return [getattr(weight, "_local_tensor", weight).detach().clone() for weight in weights]

    found, before = [], own_weights()
    for given in (broken, batch, broken, broken):
        try:
            learner.update(given, progress)
        except RunError as caught:
            found.append(f"{type(caught).__name__}: {caught}")
        after = own_weights()
        found.append([progress.skipped_steps, all(map(torch.equal, before, after))])
        before = after
    return ranks.gather_objects(found)


def errors(ranks):
    """Return what each process sees when the last one finds something wrong."""
    found = []
    for error in (RunError("line 7: no answer"), KeyError("oops")):
        try:
            with ranks.raise_on_all_ranks():
                if ranks.rank == ranks.size - 1:
                    raise error
        except Exception as caught:
            found.append(f"{type(caught).__name__}: {caught}")
    weight = torch.nn.Linear(1, 1, bias=False)
    for value in (1.0, float(ranks.rank)):
        torch.nn.init.constant_(weight.weight, value)
        try:
            ranks.require_same_weights(weight)
        except RunError as caught:
            found.append(f"{value}: {caught}")
    return ranks.gather_objects(found)


def main(output, mode, *cases):
    torch.set_num_threads(1)
    with join_ranks() as ranks:
        found = {}
        tensors = {}
        for case in cases:
            found[case], tensors[case] = learn(case, mode == "sharded", ranks)
        found["skips"] = skips("text", mode == "sharded", ranks)
        found["errors"] = errors(ranks)
        if ranks.is_main:
            flat = {
                f"{case}/{name}": tensor
                for case, part in tensors.items()
                for name, tensor in part.items()
            }
            save_file(flat, f"{output}.safetensors")
            Path(f"{output}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
