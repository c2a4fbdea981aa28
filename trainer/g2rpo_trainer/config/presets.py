"""Defaults of pretrained models, where they are not those of the built-in run.

They lie beneath the file and the flags of a run, and stand in its ``config.yaml`` like all else.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["ADAPTER_DEFAULTS", "PRETRAINED_DEFAULTS", "presets"]

PRETRAINED_DEFAULTS: Mapping[str, Any] = {
    # Answers of a model that thinks aloud.
    "rollout.max_completion_length": 1024,
    "optimization.learning_rate": 1e-6,
    "optimization.schedule": "constant",
    # The paper's.
    "entropy.low": 0.2,
    "length.weight": 0.1,
}
"""Of any model but the one inside the package."""

ADAPTER_DEFAULTS: Mapping[str, Any] = {"optimization.learning_rate": 1e-5}
"""Of such a model where low-rank adapters are trained."""


def presets(model: object, rank: object) -> dict[str, Any]:
    """Return the defaults of a run, by dotted key, that are not those of the sections.

    Parameters
    ----------
    model, rank : object
        ``model.name`` and ``model.lora.rank`` as they are said, checked or not.

    Returns
    -------
    dict of str to object

    Examples
    --------
    >>> presets("builtin", 0)
    {}
    >>> presets("Qwen/Qwen2.5-VL-3B-Instruct", 16)["optimization.learning_rate"]
    1e-05
    """
    if model == "builtin":
        return {}
    return {**PRETRAINED_DEFAULTS, **(ADAPTER_DEFAULTS if rank else {})}
