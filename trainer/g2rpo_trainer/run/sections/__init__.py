"""The sections of a run's description: one frozen model each, every field with its unit."""

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
]
