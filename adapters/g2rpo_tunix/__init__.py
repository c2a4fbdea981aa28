"""G²RPO in tunix: a learner that knows tasks, and estimators and a loss in tunix's registry.

Importing this package registers them; see :mod:`g2rpo_tunix.registry` for their names.
"""

from importlib.util import find_spec

if find_spec("tunix") is None:
    raise ImportError(
        'g2rpo_tunix needs tunix, which the core does not install; run: pip install "g2rpo[tunix]"'
    )

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
