"""verl's own launcher on the CPU: a tiny random model, three tasks, and rollouts at random."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from marks import END, MARKS, TOKENS  # noqa: E402

TASKS = ("mining", "first", "tail")
PROMPTS, GROUP = 6, 4


def save_model(folder: Path) -> None:
    """Save a model of one layer, and a tokenizer of a dozen words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} " + END + " {% endfor %}"
    template += "{% if add_generation_prompt %}assistant {% endif %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token=END, chat_template=template
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_prompts(path: Path, tasks: tuple[Any, ...] = TASKS) -> None:
    """Save verl's kind of data set: a prompt each of two marks."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{MARKS[i]} {MARKS[i + 1]}"}],
            "data_source": tasks[i % len(tasks)],
            "reward_model": {"style": "rule", "ground_truth": MARKS[i]},
            "extra_info": {"index": i},
        }
        for i in range(PROMPTS)
    ]
    pd.DataFrame(rows).to_parquet(path)


class Host(NamedTuple):
    """A folder with a model and data, and the arguments to train on them."""

    folder: Path
    arguments: dict[str, Any]


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    folder = tmp_path_factory.mktemp("host")
    save_model(folder / "model")
    save_prompts(folder / "train.parquet")
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    arguments = {
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "train.parquet",
        "data.train_batch_size": PROMPTS,
        "data.max_prompt_length": 16,
        "data.max_response_length": 6,
        "data.dataloader_num_workers": 0,
        "actor_rollout_ref.model.path": folder / "model",
        "actor_rollout_ref.model.use_remove_padding": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.use_torch_compile": False,
        f"{actor}.ppo_mini_batch_size": PROMPTS,
        f"{actor}.ppo_micro_batch_size_per_gpu": 4,
        f"{actor}.optim.lr": 0.01,
        f"{rollout}.name": "random",
        f"{rollout}.n": GROUP,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 4,
        f"{rollout}.agent.num_workers": 1,
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": HERE / "marks.py",
        "trainer.n_gpus_per_node": 1,
        "trainer.device": "cpu",
        "trainer.logger": "[file]",
        "trainer.val_before_train": False,
        "trainer.total_training_steps": 2,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": folder / "checkpoints",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "+ray_kwargs.ray_init.num_cpus": 8,
        "+ray_kwargs.ray_init.num_gpus": 1,
        "+ray_kwargs.ray_init.include_dashboard": False,
    }
    return Host(folder, arguments)


def train(host: Host, folder: Path, changes: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run verl's launcher in ``folder``, with some of its arguments changed."""
    return start([sys.executable, "-m", "verl.trainer.main_ppo"], folder, host.arguments | changes)


def start(
    command: list[str], folder: Path, arguments: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` that starts verl's launcher, on the CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "VERL_USE_EXTERNAL_MODULES": "cpu_host",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = command + [f"{name}={value}" for name, value in arguments.items()]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def logged(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of every step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["data"] for line in lines]
