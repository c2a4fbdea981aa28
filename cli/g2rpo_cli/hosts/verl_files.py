"""The files with which verl trains as a run was configured to."""

from __future__ import annotations

from string import Template
from typing import Any

import yaml

from g2rpo_trainer.config import TrainConfig
from g2rpo_trainer.scoring import reward_weights

from .keys import Settled, nested, options_of

# Without a key of ours; the machines are for arguments of run.sh to name.
_COMMON: dict[str, Any] = {
    "algorithm.adv_estimator": "g2rpo",
    "trainer.v1.trainer_mode": "g2rpo_sync",
    "trainer.total_epochs": 1,
    "trainer.n_gpus_per_node": 1,
    "trainer.nnodes": 1,
    "data.shuffle": False,  # the file has the order of the run
    "data.truncation": "error",
    "actor_rollout_ref.actor.strategy": "fsdp2",
}


def files_of(config: TrainConfig, settled: list[Settled]) -> dict[str, str]:
    """Return configuration, command and rewards: name of a file -> its text."""
    options = nested({**_COMMON, **options_of(settled)})
    rewards = config.rewards
    keywords = {
        "weights": dict(reward_weights(config.rewards.weights, config.data.source)._asdict()),
        "seconds": rewards.timeout,
        "workers": 1 if rewards.workers is None else rewards.workers,
    }
    if rewards.functions:
        keywords["functions"] = dict(rewards.functions)
    body = yaml.safe_dump(options, sort_keys=False, width=100)
    return {
        "config.yaml": _YAML + body,
        "run.sh": _COMMAND,
        "rewards.py": _REWARD_FILE.substitute(options=repr(keywords)),
    }


_YAML = """# A run of `g2rpo train`, for verl's launcher; run.sh beside this file starts it.
hydra:
  searchpath:
    - pkg://verl.trainer.config

defaults:
  - ppo_trainer
  - _self_

"""

_COMMAND = """#!/usr/bin/env bash
# A run of `g2rpo train`, in verl; README.md beside this file says what differs.
# Further arguments win over config.yaml: bash run.sh trainer.n_gpus_per_node=8
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# Ray's workers look for reward functions where the run was started.
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD"
exec python -m verl.trainer.main_ppo --config-path="$here" --config-name=config \\
  data.train_files="$here/data/train.parquet" \\
  data.val_files="$here/data/test.parquet" \\
  reward.custom_reward_function.path="$here/rewards.py" \\
  "$@"
"""

_REWARD_FILE = Template('''"""The rewards of the run, as verl calls them."""

from g2rpo_verl.rewards import compute_score as score

OPTIONS = ${options}


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """Return the weighted sum of accuracy, format and structure, and each of them."""
    return score(data_source, solution_str, ground_truth, extra_info, **OPTIONS)
''')
