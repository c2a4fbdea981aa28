# ruff: noqa: E402 (a missing package is named before anything needs it)
"""G²RPO in tunix: a learner that knows tasks, and estimators and a loss in tunix's registry.

Importing this package registers them; see :mod:`g2rpo_tunix.registry` for their names.
"""

from g2rpo._extras import require

require("g2rpo_tunix", "tunix", extra="tunix")

from .agentic import AgenticG2RPOConfig, AgenticG2RPOLearner
from .config import G2RPOConfig
from .learner import G2RPOLearner
from .registry import register_estimators
from .running_scale import RunningScale

__all__ = [
    "AgenticG2RPOConfig",
    "AgenticG2RPOLearner",
    "G2RPOConfig",
    "G2RPOLearner",
    "RunningScale",
    "register_estimators",
]
