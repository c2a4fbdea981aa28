# ruff: noqa: E402 (missing packages are named before anything needs them)
"""The configuration of a run: a frozen Pydantic model for each section."""

from g2rpo._extras import require

require("g2rpo_trainer.config", "pydantic", "yaml", extra="torch")

from .data import (
    BUILTIN_SOURCES,
    BUILTIN_TASKS,
    BUILTIN_TEXT_TASKS,
    DATA_SUFFIXES,
    RECORD_COLUMNS,
    Data,
    Mixing,
)
from .keys import parse_setting
from .loading import PRESETS, config_origins, dump_config, load_config
from .rollout import DynamicSampling, Rewards, RewardWeights, Rollout
from .section import Section
from .shaping import LENGTH_KINDS, Calibration, Entropy, Estimator, Length, TaskWeights
from .template import config_template
from .train_config import TASK_KEYS, TrainConfig
from .training import Lora, Model, Optimization, Output

__all__ = [
    "BUILTIN_SOURCES",
    "BUILTIN_TASKS",
    "BUILTIN_TEXT_TASKS",
    "DATA_SUFFIXES",
    "LENGTH_KINDS",
    "PRESETS",
    "RECORD_COLUMNS",
    "TASK_KEYS",
    "Calibration",
    "Data",
    "DynamicSampling",
    "Entropy",
    "Estimator",
    "Length",
    "Lora",
    "Mixing",
    "Model",
    "Optimization",
    "Output",
    "RewardWeights",
    "Rewards",
    "Rollout",
    "Section",
    "TaskWeights",
    "TrainConfig",
    "config_origins",
    "config_template",
    "dump_config",
    "load_config",
    "parse_setting",
]
