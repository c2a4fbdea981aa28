"""What an engine's defaults are where they are not those of the reference trainer.

They lie beneath the file and the flags of a run, and stand in its ``config.yaml`` like all else.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["ENGINE_DEFAULTS"]

_TEXT: dict[str, Any] = {
    "data.source": "builtin-text",
    "rollout.max_completion_length": 40,
    "length.targets": {
        "arithmetic": (6, 16, 36, 40),
        "box": (12, 24, 36, 40),
        "bars": (6, 16, 30, 36),
        "sorting": (0, 0, 15, 24),
    },
}

ENGINE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "reference": {},
    "jax": {
        **_TEXT,
        "rollout.prompts_per_step": 32,
        "optimization.steps": 250,
        "optimization.learning_rate": 2e-4,
        "output.trackers": [],
        "output.equity_steps": 0,
    },
    "tunix": {
        **_TEXT,
        "rollout.prompts_per_step": 24,
        "optimization.steps": 200,
        "optimization.learning_rate": 5e-4,
        "output.trackers": [],
        "output.equity_steps": 0,
    },
}
"""Engine -> value by dotted key."""
