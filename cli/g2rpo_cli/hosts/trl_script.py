"""The script of TRL that trains as a run was configured to."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from g2rpo_trainer.config import TrainConfig

from .keys import Settled, nested, options_of


def updates_of(config: TrainConfig) -> int:
    """Return the number of equal updates of a step, at most as many as the configuration asks."""
    prompts, wanted = config.rollout.prompts_per_step, config.optimization.updates_per_batch
    return max(n for n in range(1, wanted + 1) if prompts % n == 0)


def script_of(config: TrainConfig, settled: list[Settled]) -> dict[str, str]:
    """Return the script: its name and its text."""
    rewards, rollout = config.rewards, config.rollout
    longest = (rollout.max_prompt_length or 0) + rollout.max_completion_length
    options = {"output_dir": config.output.dir, **nested(options_of(settled))}
    arguments = {
        "workers": rewards.workers,
        "timeout": rewards.timeout,
        "functions": rewards.functions or None,
        "skip_errors": rewards.skip_errors,
    }
    text = _SCRIPT.substitute(
        model=repr(config.model.name),
        rollouts=rollout.prompts_per_step * rollout.num_generations,
        updates=updates_of(config),
        eval_batch=config.data.eval_generations,
        largest=max(1, config.optimization.micro_batch_tokens // longest),
        search=_SEARCH if rewards.functions else "",
        rewards=_keywords(arguments, 8),
        project=repr(config.output.project),
        options=_keywords(options, 8),
        imports="".join(_imports(config)),
        model_parts=_model_parts(config),
        freeze=_FREEZE if config.model.freeze_vision else "",
    )
    return {"train.py": text}


def _imports(config: TrainConfig) -> list[str]:
    lora, template = config.model.lora.rank, config.model.chat_template
    return [
        "from peft import LoraConfig\n" if lora else "",
        "from transformers import AutoProcessor\n" if template else "",
    ]


def _model_parts(config: TrainConfig) -> str:
    """Return the arguments of the trainer that stand for parts of the model."""
    lora, text = config.model.lora, ""
    if config.model.chat_template:
        template = Path(config.model.chat_template).read_text(encoding="utf-8")
        text += (
            "        processing_class=AutoProcessor.from_pretrained(\n"
            f"            MODEL, chat_template={template!r}\n"
            "        ),\n"
        )
    if lora.rank:
        where: dict[str, Any] = {"target_modules": lora.target_modules or "all-linear"}
        if not lora.target_modules:
            where["exclude_modules"] = ".*(visual|vision).*"
        options = {"r": lora.rank, "lora_alpha": lora.alpha or 2 * lora.rank, **where}
        options["task_type"] = "CAUSAL_LM"
        text += f"        peft_config=LoraConfig(\n{_keywords(options, 12)}        ),\n"
    return text


def _keywords(options: dict[str, Any], indent: int) -> str:
    space = " " * indent
    return "".join(
        f"{space}{name}={_shown_value(each, indent)},\n" for name, each in options.items()
    )


def _shown_value(value: Any, indent: int) -> str:
    """Return a value as Python; a long mapping has a line for each entry."""
    text, space = repr(value), " " * indent
    if not isinstance(value, dict) or len(text) < 60:
        return text
    entries = (f"{space}    {key!r}: {each!r},\n" for key, each in value.items())
    return "{\n" + "".join(entries) + space + "}"


_SEARCH = """
    sys.path.append(os.getcwd())  # of the reward functions"""

_FREEZE = """    trainer.model.get_encoder(modality="image").requires_grad_(False)
"""

_SCRIPT = Template('''"""A run of `g2rpo train`, in TRL; README.md beside it says what differs.

    python train.py
    accelerate launch train.py
"""

import os
import sys
from pathlib import Path

from datasets import load_dataset
${imports}
from g2rpo_trl import G2RPOConfig, G2RPOTrainer
from g2rpo_trl.rewards import RecordRewards

MODEL = ${model}
DATA = Path(__file__).resolve().parent / "data"

# Responses in a step, optimiser updates on them, and sequences of a pass at most.
ROLLOUTS, UPDATES, LARGEST = ${rollouts}, ${updates}, ${largest}


def main() -> None:
    """Train, and evaluate before and after it."""
    os.environ.setdefault("WANDB_PROJECT", ${project})${search}
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share, rest = divmod(ROLLOUTS // UPDATES, processes)
    if rest:
        sys.exit(f"{ROLLOUTS // UPDATES} responses cannot be divided over {processes} processes")
    at_once = max(size for size in range(1, LARGEST + 1) if share % size == 0)
    rewards = RecordRewards(
${rewards}    )
    args = G2RPOConfig(
${options}        per_device_train_batch_size=at_once,
        per_device_eval_batch_size=${eval_batch},
        gradient_accumulation_steps=share // at_once,
        shuffle_dataset=False,  # the file has the order of the run
        logging_steps=UPDATES,
    )
    data = load_dataset("parquet", data_dir=str(DATA))
    trainer = G2RPOTrainer(
        MODEL,
        [rewards.accuracy, rewards.format, rewards.structure],
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
${model_parts}    )
${freeze}    trainer.train()
    trainer.evaluate()
    trainer.save_model()


if __name__ == "__main__":  # the rewards are scored in processes of their own
    main()
''')
