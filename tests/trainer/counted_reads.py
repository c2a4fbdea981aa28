"""Draw and evaluate on records of which some are too long, and count what is tokenised.

    torchrun --nproc-per-node=2 counted_reads.py DATA OUTPUT

The first process writes what each has tokenised, and what the step and the evaluation have.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from g2rpo_trainer.config import load_config
from g2rpo_trainer.data import open_run
from g2rpo_trainer.distributed import join_ranks
from g2rpo_trainer.evaluation import Evaluator
from g2rpo_trainer.metrics import Stopwatch
from g2rpo_trainer.model.policy_model import make_policy
from g2rpo_trainer.scoring import Scorer

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.trainer import tiny_models
from tests.trainer.parts import collector_of

LONGEST = 160
SETTINGS = (
    "data.skip_broken=true",
    "data.eval_items=4",
    "data.eval_generations=1",
    "data.eval_fraction=0.25",
    "length.mode=off",
    "rollout.prompts_per_step=7",
    "rollout.num_generations=2",
    "rollout.max_completion_length=4",
    "rewards.workers=0",
)


def counting_policy(longest=LONGEST):
    """Return a policy of text, and the list of the texts that it tokenises from now on."""
    tokenizer = tiny_models.build_processor("llama")
    policy = make_policy(
        tiny_models.build_model("llama", tokenizer).eval(), tokenizer, max_prompt_length=longest
    )
    texts = []

    class Counting(type(tokenizer)):
        def __call__(self, given, **options):
            texts.extend(given)
            return super().__call__(given, **options)

    tokenizer.__class__ = Counting
    return policy, texts


def count(config, ranks):
    """Return the texts of a step and of an evaluation, and what came of them."""
    policy, texts = counting_policy()
    source = open_run(config)
    with Scorer(config.rewards, config.data, source) as scorer:
        torch.manual_seed(0)
        collector = collector_of(policy, config, scorer, source=source, ranks=ranks)
        drawn = collector.collect(0, Stopwatch())
        in_step, skipped = list(texts), source.skipped_state()["numbers"]
        source.restore_skipped(*ranks.gather_objects(source.skipped_state()))
        texts.clear()
        evaluator = Evaluator(source, scorer, config.data, config.rollout, ranks=ranks)
        evaluation = evaluator.evaluate(policy)
    own = {"step": in_step, "skipped": skipped, "evaluation": list(texts)}
    return {
        "ranks": ranks.gather_objects(own),
        "problems": drawn.problems,
        "texts": drawn.texts,
        "skipped": source.skipped,
        "evaluation": asdict(evaluation),
    }


def main(data, output):
    torch.set_num_threads(1)
    config = load_config(settings=[f"data.source={data}", *SETTINGS])
    with join_ranks() as ranks:
        found = count(config, ranks)
        if ranks.is_main:
            Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
