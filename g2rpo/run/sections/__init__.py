"""The sections of a run's description: one frozen model each, every field with its unit."""

from .data import BUILTIN_SOURCES, BUILTIN_TASKS, RECORD_COLUMNS, Data, Mixing
from .entropy import Entropy
from .estimator import Estimator
from .length import DEFAULT_LENGTH_TARGETS, Length
from .model import Model
from .optimization import Optimization
from .output import Output
from .rollout import Rollout
from .section import Section

__all__ = [
    "BUILTIN_SOURCES",
    "BUILTIN_TASKS",
    "DEFAULT_LENGTH_TARGETS",
    "RECORD_COLUMNS",
    "Data",
    "Entropy",
    "Estimator",
    "Length",
    "Mixing",
    "Model",
    "Optimization",
    "Output",
    "Rollout",
    "Section",
]
