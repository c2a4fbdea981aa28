# ruff: noqa: E402 (missing packages are named before anything needs them)
"""The configuration of a run: one frozen model a section, every field with its unit."""

from importlib.util import find_spec

_MISSING = [name for name in ("pydantic", "yaml") if find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f"g2rpo_trainer.config needs {', '.join(_MISSING)}, which the core does not install; "
        'run: pip install "g2rpo[torch]"'
    )


from .data import (
    BUILTIN_SOURCES,
    BUILTIN_TASKS,
    BUILTIN_TEXT_TASKS,
    DATA_SUFFIXES,
    RECORD_COLUMNS,
    Data,
    Mixing,
)
from .entropy import Entropy
from .estimator import Estimator
from .length import DEFAULT_LENGTH_TARGETS, LENGTH_KINDS, Calibration, Length
from .model import Lora, Model
from .optimization import Optimization
from .output import Output
from .rewards import Rewards, RewardWeights
from .rollout import Rollout
from .section import Section
from .task_weights import TaskWeights
from .train_config import TrainConfig, dump_config, load_config, parse_setting

__all__ = [
    "BUILTIN_SOURCES",
    "BUILTIN_TASKS",
    "BUILTIN_TEXT_TASKS",
    "DATA_SUFFIXES",
    "DEFAULT_LENGTH_TARGETS",
    "LENGTH_KINDS",
    "RECORD_COLUMNS",
    "Calibration",
    "Data",
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
    "dump_config",
    "load_config",
    "parse_setting",
]
