"""G²RPO in TRL: two tasks, the built-in rewards, one script.

    pip install "g2rpo[trl]"
    python examples/trl_grpo.py --output_dir out --model_name_or_path Qwen/Qwen3-0.6B
    accelerate launch examples/trl_grpo.py --config run.yaml

Arguments are TRL's and those of `G2RPOConfig`. Against a script for `GRPOTrainer` two names differ,
and the data set has a column with each prompt's task.
"""

from __future__ import annotations

import random

from datasets import Dataset
from trl import ModelConfig, TrlParser

from g2rpo_trl import G2RPOConfig, G2RPOTrainer
from g2rpo_trl.rewards import accuracy, format

FORM = "Write a thought in <think></think>, then the answer alone in <answer></answer>."


def make_dataset(size: int, seed: int = 0) -> Dataset:
    """Return records of two tasks: a product to compute, and a word to read."""
    draw = random.Random(seed)
    records = []
    for number in range(size):
        if number % 2:
            a, b = draw.randint(11, 99), draw.randint(11, 99)
            task, problem, answer, kind = "maths", f"What is {a} * {b}?", str(a * b), "numerical"
        else:
            word = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8))
            task, problem, answer, kind = "ocr", f"Copy the word {word}.", word, "OCR"
        records.append(
            {
                "prompt": [{"role": "user", "content": f"{problem} {FORM}"}],
                "answer": answer,
                "problem_type": kind,
                "task_type": task,
            }
        )
    return Dataset.from_list(records)


def main() -> None:
    """Train with the options of the command line."""
    args, model = TrlParser((G2RPOConfig, ModelConfig)).parse_args_and_config()
    args.reward_weights = args.reward_weights or [0.9, 0.1]
    args.length_only_right = args.length_only_right or "accuracy"
    args.length_targets = args.length_targets or {"maths": "reasoning", "ocr": "direct"}
    trainer = G2RPOTrainer(
        model.model_name_or_path,
        [accuracy, format],
        args,
        train_dataset=make_dataset(4096),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
