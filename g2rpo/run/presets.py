"""Defaults that are not those of the built-in run: of other engines, and of pretrained models.

They lie beneath the file and the flags of a run, and stand in its ``config.yaml`` like all else.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["ADAPTER_DEFAULTS", "ENGINE_DEFAULTS", "PRETRAINED_DEFAULTS", "presets"]

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

PRETRAINED_DEFAULTS: Mapping[str, Any] = {
    # Answers of a model that thinks aloud.
    "rollout.max_completion_length": 1024,
    "optimization.learning_rate": 1e-6,
    "optimization.schedule": "constant",
    # The paper's.
    "entropy.low": 0.2,
    "length.weight": 0.1,
}
"""Of the reference trainer with any model but the one inside the package."""

ADAPTER_DEFAULTS: Mapping[str, Any] = {"optimization.learning_rate": 1e-5}
"""Of such a model where low-rank adapters are trained."""


def presets(engine: object, model: object, rank: object) -> dict[str, Any]:
    """Return the defaults of a run, by dotted key, that are not those of the sections.

    Parameters
    ----------
    engine, model, rank : object
        ``engine``, ``model.name`` and ``model.lora.rank`` as they are said, checked or not.

    Returns
    -------
    dict of str to object

    Examples
    --------
    >>> presets("reference", "builtin", 0)
    {}
    >>> presets("reference", "Qwen/Qwen2.5-VL-3B-Instruct", 16)["optimization.learning_rate"]
    1e-05
    """
    found = dict(ENGINE_DEFAULTS.get(str(engine), {}))
    if engine == "reference" and model != "builtin":
        found |= PRETRAINED_DEFAULTS
        if rank:
            found |= ADAPTER_DEFAULTS
    return found
